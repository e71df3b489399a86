//! The client against a live server.

mod support;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use aclserve_client::v1::infer_result::Outcome;
use aclserve_client::v1::{
    InferItem, InferRequest, InferResult, ListModelsRequest, ResultOrder, StreamConfig, StreamPreset, Tensor,
};
use aclserve_client::{Client, Error, Results, Sender, StreamOptions};
use support::{address, digits, labels, start_proxy, start_server};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tonic::Code;

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("within 60 s")
}

fn config() -> StreamConfig {
    StreamConfig { model: "digits".into(), ..Default::default() }
}

fn resuming() -> StreamOptions {
    StreamOptions { resume: true, backoff: Duration::from_millis(10), ..Default::default() }
}

async fn open(address: &str, config: StreamConfig, options: StreamOptions) -> (Sender, Results) {
    Client::new(address).unwrap().stream(config, options).await.unwrap()
}

/// Sends so many digits, then drops the sender; gives the most that were pending.
fn send(sender: Sender, count: usize) -> JoinHandle<Result<usize, Error>> {
    tokio::spawn(async move {
        let mut most = 0;
        for digit in digits().into_iter().take(count) {
            sender.send(digit).await?;
            most = most.max(sender.pending());
        }
        Ok(most)
    })
}

fn label(result: &InferResult) -> i64 {
    result.output("label").unwrap().values::<i64>().unwrap()[0]
}

async fn collect(results: &mut Results) -> Vec<InferResult> {
    let mut all = Vec::new();
    while let Some(result) = bounded(results.next()).await {
        all.push(result.unwrap());
    }
    all
}

fn refused<T>(outcome: Result<T, Error>, code: Code, reason: &str) {
    let error = outcome.err().expect("a refusal");
    assert_eq!((error.code, error.reason.as_str()), (code, reason), "{error}");
}

#[tokio::test]
async fn a_single_item() {
    let client = Client::new(&address()).unwrap();
    let [image] = digits().remove(0);
    let request = InferRequest { model: "digits".into(), inputs: vec![image], ..Default::default() };
    let answer = bounded(client.infer(request.clone())).await.unwrap();
    let label = &answer.outputs.unwrap().tensors.into_iter().find(|tensor| tensor.name == "label").unwrap();
    assert_eq!((label.shape.as_slice(), label.values().unwrap()), ([1].as_slice(), vec![labels()[0]]));
    refused(label.values::<f32>(), Code::InvalidArgument, "");
    refused(
        bounded(client.infer(InferRequest { model: "nothing".into(), ..request })).await,
        Code::NotFound,
        "MODEL_NOT_FOUND",
    );
}

#[tokio::test]
async fn every_digit_is_answered_once_in_the_order_asked_for() {
    let labels = labels();
    let config = StreamConfig { order: ResultOrder::Submission.into(), ..config() };
    let (sender, mut results) = open(&address(), config, StreamOptions::default()).await;
    let sending = send(sender, labels.len());
    let all = collect(&mut results).await;
    sending.await.unwrap().unwrap();
    let ids: Vec<usize> = all.iter().map(|result| result.id.parse().unwrap()).collect();
    assert_eq!(ids, (0..labels.len()).collect::<Vec<_>>());
    let right = all.iter().zip(&labels).filter(|(result, truth)| label(result) == **truth).count();
    assert!(right >= labels.len() * 95 / 100, "{right}");
    let summary = results.summary().unwrap();
    assert_eq!((summary.received_items, summary.succeeded_items, results.resumptions()), (500, 500, 0));
}

#[tokio::test]
async fn a_bad_item_does_not_end_the_stream() {
    let (sender, mut results) = open(&address(), config(), StreamOptions::default()).await;
    let bad = Tensor::of("image", &[1, 3, 3], &[0f32; 9]);
    let bad = InferItem { id: "bad".into(), inputs: vec![bad], ..Default::default() };
    assert_eq!(sender.send(bad).await.unwrap(), "bad");
    let large = [Tensor::of("image", &[1 << 26], &vec![0u8; 1 << 26])];
    refused(bounded(sender.send(large)).await, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert_eq!(bounded(sender.send(digits().remove(1))).await.unwrap(), "1");
    drop(sender);
    let all: HashMap<String, InferResult> =
        collect(&mut results).await.into_iter().map(|result| (result.id.clone(), result)).collect();
    assert_eq!(all.len(), 2);
    refused(all["bad"].output("label"), Code::InvalidArgument, "SHAPE_MISMATCH");
    assert_eq!(label(&all["1"]), labels()[1]);
    assert_eq!(results.summary().unwrap().failed_items, 1);
}

#[tokio::test]
async fn no_more_items_are_under_way_than_the_window_has() {
    let config = StreamConfig { max_pending_items: 3, ..config() };
    let (sender, mut results) = open(&address(), config, StreamOptions::default()).await;
    assert_eq!(sender.window(), 3);
    let sending = send(sender, 60);
    assert_eq!(collect(&mut results).await.len(), 60);
    let most = sending.await.unwrap().unwrap();
    assert!((1..=3).contains(&most), "{most}");
}

#[tokio::test]
async fn a_sender_whose_results_nobody_reads_is_told_so() {
    let config = StreamConfig { max_pending_items: 4, ..config() };
    let options = StreamOptions { max_unread: 16, ..Default::default() };
    let (sender, mut results) = open(&address(), config, options).await;
    refused(bounded(send(sender, 500)).await.unwrap(), Code::ResourceExhausted, "RESULTS_NOT_READ");
    let count = collect(&mut results).await.len();
    assert!((16..=24).contains(&count), "{count}");
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    let options = StreamOptions { max_unread: 8, ..Default::default() };
    let (sender, mut results) = open(&address(), config(), options).await;
    let first = bounded(async {
        let waiting = results.next(); // reading has begun
        let (first, sent) = tokio::join!(waiting, sender.send(digits().remove(0)));
        sent.map(|_| first)
    });
    assert!(first.await.unwrap().is_some());
    let sending = send(sender, 299);
    let mut count = 1;
    while let Some(result) = bounded(results.next()).await {
        label(&result.unwrap());
        count += 1;
        if count % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    sending.await.unwrap().unwrap();
    assert_eq!(count, 300);
}

#[tokio::test]
async fn a_live_stream_says_what_it_dropped() {
    let config = StreamConfig { preset: StreamPreset::Live.into(), max_pending_items: 1, ..config() };
    let (sender, mut results) = open(&address(), config, StreamOptions::default()).await;
    let sending = send(sender, 400);
    let all = collect(&mut results).await;
    sending.await.unwrap().unwrap();
    assert_eq!(all.iter().map(|result| &result.id).collect::<HashSet<_>>().len(), 400);
    let mut drops = HashMap::<String, u64>::new();
    for result in &all {
        if let Some(Outcome::Dropped(_)) = &result.outcome {
            *drops.entry(result.output("label").unwrap_err().reason).or_default() += 1;
        }
    }
    assert!(!drops.is_empty());
    assert_eq!(results.summary().unwrap().drops, drops);
}

#[tokio::test]
async fn dropping_the_results_gives_the_stream_up() {
    let (sender, results) = open(&address(), config(), StreamOptions::default()).await;
    drop(results);
    let sending = async {
        loop {
            if let Err(error) = sender.send(digits().remove(0)).await {
                return error;
            }
        }
    };
    refused(Err::<(), _>(bounded(sending).await), Code::Cancelled, "STREAM_CLOSED");
}

#[tokio::test]
async fn a_stream_goes_on_when_its_connection_breaks() {
    let proxy = start_proxy().await;
    let config = StreamConfig { max_pending_items: 8, ..config() };
    let (sender, mut results) = open(&proxy.address, config, resuming()).await;
    let sending = send(sender, 300);
    let mut seen = HashSet::new();
    while let Some(result) = bounded(results.next()).await {
        let result = result.unwrap();
        label(&result);
        assert!(seen.insert(result.id));
        if seen.len() == 40 || seen.len() == 150 {
            proxy.cut.send_modify(|count| *count += 1);
        }
    }
    sending.await.unwrap().unwrap();
    assert_eq!(seen.len(), 300);
    assert_eq!(results.resumptions(), 2);
    let summary = results.summary().unwrap();
    assert_eq!((summary.received_items, summary.succeeded_items), (300, 300));
}

#[tokio::test]
async fn without_resume_a_broken_connection_is_an_error() {
    let proxy = start_proxy().await;
    let (sender, mut results) = open(&proxy.address, config(), StreamOptions::default()).await;
    bounded(sender.send(digits().remove(0))).await.unwrap();
    label(&bounded(results.next()).await.unwrap().unwrap());
    proxy.cut.send_modify(|count| *count += 1);
    assert!(bounded(results.next()).await.unwrap().is_err());
    assert!(bounded(results.next()).await.is_none());
    assert!(bounded(sender.send(digits().remove(0))).await.is_err());
}

#[tokio::test]
async fn a_server_that_goes_away_hands_the_stream_over() {
    let (mut server, place) = start_server().await;
    let config = StreamConfig { max_pending_items: 8, ..config() };
    let (sender, mut results) = open(&format!("{place},{}", address()), config, resuming()).await;
    let sending = send(sender, 300);
    let mut seen = HashSet::new();
    while let Some(result) = bounded(results.next()).await {
        let result = result.unwrap();
        label(&result);
        assert!(seen.insert(result.id));
        if seen.len() == 50 {
            let pid = server.id().unwrap().to_string();
            assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        }
    }
    sending.await.unwrap().unwrap();
    assert_eq!((seen.len(), results.resumptions()), (300, 1));
    assert_eq!(results.summary().unwrap().succeeded_items, 300);
    assert!(bounded(server.wait()).await.unwrap().success());
}

#[tokio::test]
async fn where_no_server_is_that_is_said() {
    let client = Client::new("127.0.0.1:1").unwrap();
    refused(bounded(client.stream(config(), StreamOptions::default())).await, Code::Unavailable, "");
    let twice = StreamOptions { resume_attempts: 2, backoff: Duration::from_millis(1), ..resuming() };
    refused(bounded(client.stream(config(), twice)).await, Code::Unavailable, "");
    refused(Client::new("no address"), Code::InvalidArgument, "");
}

#[tokio::test]
async fn the_plain_stubs_are_there() {
    let mut stub = Client::new(&address()).unwrap().stub();
    let models = bounded(stub.list_models(ListModelsRequest::default())).await.unwrap().into_inner().models;
    assert_eq!(models.iter().map(|model| (model.name.as_str(), model.version)).collect::<Vec<_>>(), [("digits", 1)]);
}
