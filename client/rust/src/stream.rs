//! A stream of items to the server and of results back.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::Error;
use crate::v1::infer_result::Outcome;
use crate::v1::model_service_client::ModelServiceClient;
use crate::v1::stream_infer_request::Request;
use crate::v1::stream_infer_response::Response;
use crate::v1::tensor::Source;
use crate::v1::{
    FramePolicy, InferItem, InferResult, ItemError, ItemList, StreamConfig, StreamInferRequest, StreamInferResponse,
    StreamReady, StreamSummary, Tensor,
};

const AHEAD_ITEMS: usize = 32;
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const ITEM_OVERHEAD_BYTES: usize = 16;

/// What [`Sender::send`] takes, or a list of tensors.
pub type Item = InferItem;

impl<const N: usize> From<[Tensor; N]> for InferItem {
    fn from(inputs: [Tensor; N]) -> Self {
        Self { inputs: inputs.into(), ..Self::default() }
    }
}

/// How a stream behaves on this side.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// When the server goes away or the connection breaks, go on at the next address: send again what is not answered.
    /// An item may so run twice; it has one result all the same.
    pub resume: bool,
    /// How often in a row, without an answer in between.
    pub resume_attempts: u32,
    /// The wait before the second attempt, doubled each time up to 5 s, and by chance up to half as long.
    pub backoff: Duration,
    /// The results that are kept for a caller who does not read.
    pub max_unread: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { resume: false, resume_attempts: 8, backoff: Duration::from_millis(200), max_unread: 1024 }
    }
}

/// The sending half. Dropping it says that no item follows: what was sent is still answered.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

/// The receiving half: one result for each item, then the end; or the error that broke the stream. Dropping it gives
/// the stream up.
#[derive(Debug)]
pub struct Results {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Result<InferResult, Error>>,
}

impl Sender {
    /// Sends one item when there is room in the window, and gives its id: its position where none is set. An item that
    /// cannot be sent is an error; the stream goes on.
    pub async fn send(&self, item: impl Into<InferItem>) -> Result<String, Error> {
        let mut item: InferItem = item.into();
        let bytes = item.inputs.iter().map(inline_bytes).sum();
        self.shared
            .until(move |state| match state.admits(bytes) {
                Ok(false) => None,
                Err(error) => Some(Err(error)),
                Ok(true) => Some(state.add(std::mem::take(&mut item), bytes)),
            })
            .await
    }

    /// Items that were sent and are not answered.
    pub fn pending(&self) -> usize {
        self.shared.state().pending.len()
    }

    /// The window that the server stated: items that may be under way.
    pub fn window(&self) -> usize {
        self.shared.state().max_items
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.finished = true;
        state.flush();
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

impl Results {
    /// The next result; None at the end.
    pub async fn next(&mut self) -> Option<Result<InferResult, Error>> {
        StreamExt::next(self).await
    }

    /// The totals, when all results were read; with `resume` those of all servers, as far as their answers arrived.
    pub fn summary(&self) -> Option<StreamSummary> {
        self.shared.state().summary.clone()
    }

    /// How often the stream was opened again.
    pub fn resumptions(&self) -> u32 {
        self.shared.state().resumptions
    }
}

impl Stream for Results {
    type Item = Result<InferResult, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.shared.state().is_read = true;
        self.queue.poll_recv(context)
    }
}

/// What sender, driver and results have in common. The lock is never held across an await.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Waits until `test`, asked now and after every change, gives something.
    async fn until<T>(&self, mut test: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let found = test(&mut self.state());
            match found {
                Some(found) => return found,
                None => changed.await,
            }
        }
    }
}

/// An item that is not answered.
#[derive(Debug)]
struct Entry {
    item: InferItem,
    bytes: u64,
    sent: bool,
}

/// The rules of a stream, without the network.
#[derive(Debug, Default)]
struct State {
    call: Option<mpsc::UnboundedSender<StreamInferRequest>>,
    max_items: usize,
    max_bytes: u64,
    max_message_bytes: u64,
    drops: bool,
    going_away: bool,
    pending: Vec<Entry>,
    position: u64,
    finished: bool,
    is_read: bool,
    unread_full: bool,
    over: Option<Error>,
    counts: StreamSummary,
    summary: Option<StreamSummary>,
    resumptions: u32,
}

impl State {
    /// Whether an item of that size may be added now; an error where waiting would not help.
    fn admits(&self, bytes: u64) -> Result<bool, Error> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        if self.unread_full && !self.is_read {
            let text = "results have not been read; read them while sending, in another task";
            return Err(Error::new(Code::ResourceExhausted, "RESULTS_NOT_READ", text));
        }
        Ok(self.fits(self.pending.iter(), bytes))
    }

    fn add(&mut self, mut item: InferItem, bytes: u64) -> Result<String, Error> {
        if item.id.is_empty() {
            item.id = self.position.to_string();
        }
        let (id, size) = (item.id.clone(), (item.encoded_len() + ITEM_OVERHEAD_BYTES) as u64);
        if self.max_message_bytes > 0 && size > self.max_message_bytes {
            let text = format!("item {id} takes {size} bytes; one message may have {}", self.max_message_bytes);
            return Err(Error::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", text));
        }
        if self.pending.iter().any(|entry| entry.item.id == id) {
            let text = format!("item {id} is pending on this stream");
            return Err(Error::new(Code::AlreadyExists, "DUPLICATE_ITEM_ID", text));
        }
        self.position += 1;
        self.pending.push(Entry { item, bytes, sent: false });
        self.flush();
        Ok(id)
    }

    /// Whether an item may join others; one alone always may. A policy that drops must see the items that are too many.
    fn fits<'a>(&self, load: impl Iterator<Item = &'a Entry>, bytes: u64) -> bool {
        let (items, total) = load.fold((0, 0), |(items, total), entry| (items + 1, total + entry.bytes));
        let ahead = if self.drops { self.max_items.max(AHEAD_ITEMS) } else { 0 };
        let limit = if self.drops { 2 * self.max_bytes } else { self.max_bytes };
        items < self.max_items + ahead && (items == 0 || limit == 0 || total + bytes <= limit)
    }

    /// Sends what the window has room for, and half-closes when nothing follows.
    fn flush(&mut self) {
        let Some(call) = self.call.take() else { return };
        while let Some(next) = self.pending.iter().position(|entry| !entry.sent) {
            let on_their_way = self.pending.iter().filter(|entry| entry.sent);
            if self.going_away || !self.fits(on_their_way, self.pending[next].bytes) {
                break;
            }
            self.pending[next].sent = true;
            let items = ItemList { items: vec![self.pending[next].item.clone()] };
            let _ = call.send(StreamInferRequest { request: Some(Request::Items(items)) }); // a broken call tells itself
        }
        if self.going_away || !self.finished || self.pending.iter().any(|entry| !entry.sent) {
            self.call = Some(call);
        }
    }

    fn open(&mut self, ready: &StreamReady, call: mpsc::UnboundedSender<StreamInferRequest>) {
        self.resumptions += u32::from(self.max_items > 0);
        self.max_items = ready.max_pending_items.max(1) as usize;
        self.max_bytes = ready.max_pending_bytes;
        self.max_message_bytes = ready.max_message_bytes;
        self.drops = !matches!(ready.policy(), FramePolicy::Unspecified | FramePolicy::Wait);
        self.going_away = false;
        self.pending.iter_mut().for_each(|entry| entry.sent = false);
        self.call = Some(call);
        self.flush();
    }

    /// Notes the one answer to an item; false for one that is not pending.
    fn answer(&mut self, result: &InferResult) -> bool {
        let Some(place) = self.pending.iter().position(|entry| entry.item.id == result.id) else { return false };
        self.pending.remove(place);
        self.counts.received_items += 1;
        match &result.outcome {
            Some(Outcome::Outputs(_)) => self.counts.succeeded_items += 1,
            Some(Outcome::Dropped(notice)) => {
                let reason = notice.reason().as_str_name().trim_start_matches("DROP_REASON_");
                *self.counts.drops.entry(reason.into()).or_default() += 1;
                self.counts.dropped_items += 1;
            }
            Some(Outcome::Error(_)) | None => self.counts.failed_items += 1,
        }
        true
    }

    fn is_done(&self) -> bool {
        self.finished && self.pending.is_empty()
    }
}

/// Moves everything between a server and the two halves, until the stream ends.
struct Driver {
    shared: Arc<Shared>,
    stubs: Vec<ModelServiceClient<Channel>>,
    config: StreamConfig,
    options: StreamOptions,
    timeout: Duration,
    queue: mpsc::Sender<Result<InferResult, Error>>,
    failures: u32,
}

pub(crate) async fn open(
    stubs: Vec<ModelServiceClient<Channel>>,
    config: StreamConfig,
    options: StreamOptions,
    timeout: Duration,
) -> Result<(Sender, Results), Error> {
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Notify::new() });
    let (queue, receiver) = mpsc::channel(options.max_unread.max(1));
    let closed = queue.clone();
    let mut driver = Driver { shared: shared.clone(), stubs, config, options, timeout, queue, failures: 0 };
    let sender = Sender { shared: shared.clone() };
    let results = Results { shared: shared.clone(), queue: receiver };
    tokio::spawn(async move {
        let ending = tokio::select! {
            ending = driver.run() => ending,
            () = closed.closed() => Err(Error::new(Code::Cancelled, "STREAM_CLOSED", "the results were dropped")),
        };
        let finished = Error::new(Code::FailedPrecondition, "STREAM_ENDED", "the stream has ended; open another one");
        driver.shared.state().over = Some(ending.clone().err().unwrap_or(finished));
        driver.shared.state().call = None;
        driver.shared.changed.notify_waiters();
        if let Err(error) = ending {
            let _ = driver.queue.send(Err(error)).await; // nobody has to read it
        }
    });
    let opened = |state: &mut State| match &state.over {
        Some(error) => Some(Err(error.clone())),
        None => (state.max_items > 0).then_some(Ok(())),
    };
    shared.until(opened).await?;
    Ok((sender, results))
}

impl Driver {
    /// Opens calls, one after the other, until one ends as it should or there is no use in another.
    async fn run(&mut self) -> Result<(), Error> {
        for call in 0.. {
            let stub = self.stubs[call % self.stubs.len()].clone();
            let ending = self.call(stub).await;
            let (away, done) = {
                let mut state = self.shared.state();
                state.call = None;
                (state.going_away, state.is_done())
            };
            let error = match ending {
                Ok(()) if done || !self.options.resume || !away => break,
                Ok(()) => going_away(),
                Err(_) if done && self.options.resume => break,
                Err(error) if !self.options.resume || !error.is_loss() => return Err(error),
                Err(error) => error,
            };
            self.failures += 1;
            if self.failures > self.options.resume_attempts {
                return Err(error);
            }
            sleep(self.delay_after(&error)).await;
        }
        self.conclude().await;
        Ok(())
    }

    /// One call, from its opening to its end.
    async fn call(&mut self, mut stub: ModelServiceClient<Channel>) -> Result<(), Error> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let config = StreamInferRequest { request: Some(Request::Config(self.config.clone())) };
        let _ = requests.send(config); // the receiver is here
        let opening = async {
            let mut responses = stub.stream_infer(UnboundedReceiverStream::new(receiver)).await?.into_inner();
            match next(&mut responses).await? {
                Some(Response::Ready(ready)) => Ok((responses, ready)),
                _ => Err(Error::new(Code::Internal, "", "the server did not begin with `ready`")),
            }
        };
        let late = |_| {
            let text = format!("the server did not accept the stream within {:?}", self.timeout);
            Error::new(Code::DeadlineExceeded, "STREAM_NOT_READY", text)
        };
        let (mut responses, ready) = timeout(self.timeout, opening).await.map_err(late)??;
        self.shared.state().open(&ready, requests);
        if self.shared.state().pending.is_empty() {
            self.failures = 0;
        }
        let mut is_complete = false;
        loop {
            self.shared.changed.notify_waiters();
            match next(&mut responses).await? {
                Some(Response::Results(list)) => {
                    self.failures = 0;
                    for result in list.results {
                        self.hand_out(result).await;
                    }
                }
                Some(Response::Window(window)) => {
                    let mut state = self.shared.state();
                    state.max_items = window.max_pending_items.max(1) as usize;
                    state.max_bytes = window.max_pending_bytes;
                }
                Some(Response::GoingAway(_)) => self.shared.state().going_away = true,
                Some(Response::Summary(summary)) => {
                    is_complete = true;
                    if !self.options.resume {
                        self.shared.state().summary = Some(summary);
                    }
                }
                Some(Response::Ready(_)) => {}
                None if is_complete => return Ok(()),
                None => return Err(Error::new(Code::Internal, "", "the stream ended without its summary")),
            }
            self.shared.state().flush();
        }
    }

    /// Puts the one result of an item where the caller reads it; waits where too many lie there.
    async fn hand_out(&self, result: InferResult) {
        if !self.shared.state().answer(&result) {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(result)) = self.queue.try_send(Ok(result)) {
            self.shared.state().unread_full = true;
            self.shared.changed.notify_waiters();
            let _ = self.queue.send(result).await; // it fails when nobody will read
            self.shared.state().unread_full = false;
        }
    }

    /// Answers what the server left out, and counts.
    async fn conclude(&self) {
        let (ids, away) = {
            let state = self.shared.state();
            (state.pending.iter().map(|entry| entry.item.id.clone()).collect::<Vec<_>>(), state.going_away)
        };
        let error = if away {
            going_away()
        } else {
            Error::new(Code::Internal, "ITEM_NOT_ANSWERED", "the server ended the stream without answering the item")
        };
        for id in ids {
            let (code, reason, message) = (error.code as i32, error.reason.clone(), error.message.clone());
            let outcome = Some(Outcome::Error(ItemError { code, reason, message, ..ItemError::default() }));
            self.hand_out(InferResult { id, outcome, ..InferResult::default() }).await;
        }
        let mut state = self.shared.state();
        if self.options.resume {
            state.summary = Some(state.counts.clone());
        }
    }

    /// How long to wait: as the server says; not at all for a hand-over; otherwise longer each time.
    fn delay_after(&self, error: &Error) -> Duration {
        if let Some(delay) = error.retry_delay {
            return delay;
        }
        if self.failures == 1 && error.reason == "SERVER_GOING_AWAY" {
            return Duration::ZERO;
        }
        let backoff = self.options.backoff.saturating_mul(1 << (self.failures - 1).min(16)).min(MAX_BACKOFF);
        backoff.mul_f64(0.5 + chance() / 2.0)
    }
}

async fn next(responses: &mut Streaming<StreamInferResponse>) -> Result<Option<Response>, Error> {
    Ok(responses.message().await?.and_then(|message| message.response))
}

fn going_away() -> Error {
    let text = "the server is shutting down and takes no further item; send it elsewhere";
    Error::new(Code::Unavailable, "SERVER_GOING_AWAY", text)
}

/// A number in [0, 1), so that many clients do not come back at the same time.
fn chance() -> f64 {
    let hash = RandomState::new().build_hasher().finish();
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn inline_bytes(tensor: &Tensor) -> u64 {
    match &tensor.source {
        Some(Source::Data(data)) => data.len() as u64,
        _ => 0,
    }
}
