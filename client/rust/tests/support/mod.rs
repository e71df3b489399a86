//! What the tests run against: the digits, servers, and a proxy whose connections can be cut.

#[path = "../../examples/npy/mod.rs"]
mod npy;

use std::env;
use std::path::PathBuf;
use std::process::Stdio;

use aclserve_client::v1::Tensor;
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run the tests with: make client-rust"))
}

/// The server's HOST:PORT.
pub fn address() -> String {
    variable("ACLSERVE_ADDRESS")
}

fn array(name: &str) -> Vec<u8> {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/digits");
    npy::read(&PathBuf::from(env::var("ACLSERVE_DIGITS").unwrap_or(here.into())).join(name)).unwrap()
}

/// The right answers.
pub fn labels() -> Vec<i64> {
    array("heldout_labels.npy").into_iter().map(i64::from).collect()
}

/// The inputs of the held-out images.
pub fn digits() -> Vec<[Tensor; 1]> {
    let tensor = |image: &[u8]| {
        let pixels: Vec<f32> = image.iter().copied().map(f32::from).collect();
        [Tensor::of("image", &[1, 8, 8], &pixels)]
    };
    array("heldout_images.npy").chunks_exact(64).map(tensor).collect()
}

/// Another server on the same models, killed at the end.
pub async fn start_server() -> (Child, String) {
    let line = variable("ACLSERVE_SERVE");
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let mut server = command.args(words).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let ready = lines.next_line().await.unwrap().expect("the server starts");
    let address = ready.strip_prefix("ready grpc=").and_then(|rest| rest.split(' ').next()).expect("a ready line");
    (server, address.to_owned())
}

/// A way to the server whose connections all break with every number sent on `cut`.
pub struct Proxy {
    pub address: String,
    pub cut: watch::Sender<u32>,
}

pub async fn start_proxy() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cut, cuts) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(self::address()).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    Proxy { address, cut }
}
