//! A client for aclserve: [`Client`] runs single items and opens streams; [`v1`] holds the plain stubs.
//!
//! ```no_run
//! # async fn example() -> Result<(), aclserve_client::Error> {
//! use aclserve_client::{Client, StreamOptions, v1::{StreamConfig, Tensor}};
//!
//! let client = Client::new("127.0.0.1:8001")?;
//! let config = StreamConfig { model: "digits".into(), ..Default::default() };
//! let (sender, mut results) = client.stream(config, StreamOptions::default()).await?;
//! tokio::spawn(async move {
//!     for _ in 0..100 {
//!         sender.send([Tensor::of("image", &[1, 8, 8], &[0f32; 64])]).await?;
//!     }
//!     Ok::<_, aclserve_client::Error>(()) // dropping the sender says: no more items
//! });
//! while let Some(result) = results.next().await {
//!     println!("{:?}", result?.output("label")?.values::<i64>()?);
//! }
//! # Ok(()) }
//! ```

mod error;
mod stream;
mod tensors;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

pub use error::Error;
pub use stream::{Item, Results, Sender, StreamOptions};
pub use tensors::Element;

/// The stubs of the contract, as made from the .proto files.
#[allow(missing_docs, clippy::doc_lazy_continuation, clippy::doc_markdown)]
pub mod v1 {
    tonic::include_proto!("aclserve.v1");
}

use v1::model_service_client::ModelServiceClient;

const MAX_MESSAGE_BYTES: usize = 65 << 20;

/// One server, or several that serve the same models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    stubs: Vec<ModelServiceClient<Channel>>,
    timeout: Duration,
}

impl Client {
    /// For addresses such as `one:8001,two:8001`; connects when something is asked for. Needs a Tokio runtime.
    pub fn new(addresses: &str) -> Result<Self, Error> {
        let endpoints = addresses.split(',').map(|address| {
            Endpoint::from_shared(format!("http://{}", address.trim()))
                .map_err(|_| Error::invalid(format!("got the address {address:?}; expected HOST:PORT")))
        });
        Ok(Self::with_endpoints(endpoints.collect::<Result<Vec<_>, _>>()?))
    }

    /// For endpoints set up by the caller, with TLS for instance. Panics without any.
    pub fn with_endpoints(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let stub = |endpoint: Endpoint| {
            ModelServiceClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
        let stubs: Vec<_> = endpoints.into_iter().map(stub).collect();
        assert!(!stubs.is_empty(), "got no endpoint; expected at least one");
        Self { stubs, timeout: Duration::from_secs(30) }
    }

    /// The deadline of a single item, and for a stream to become ready; 30 s without this.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The stub of the first server, for everything else.
    pub fn stub(&self) -> ModelServiceClient<Channel> {
        self.stubs[0].clone()
    }

    /// Runs one item on the first server.
    pub async fn infer(&self, request: v1::InferRequest) -> Result<v1::InferResponse, Error> {
        let mut request = tonic::Request::new(request);
        request.set_timeout(self.timeout);
        let answer = self.stub().infer(request).await?;
        Ok(answer.into_inner())
    }

    /// Opens a stream and waits until it is ready.
    pub async fn stream(&self, config: v1::StreamConfig, options: StreamOptions) -> Result<(Sender, Results), Error> {
        stream::open(self.stubs.clone(), config, options, self.timeout).await
    }
}
