//! What went wrong, with the service's own reason where it gave one.

use std::fmt;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::v1::ItemError;

/// Why an item, a call or a stream failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// gRPC's category.
    pub code: Code,
    /// Stable, in UPPER_SNAKE_CASE; empty where the service gave none.
    pub reason: String,
    /// For people: what was got, what was expected, what to do.
    pub message: String,
    /// When to try again, where the server says so.
    pub retry_delay: Option<Duration>,
}

impl Error {
    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), retry_delay: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "", message)
    }

    /// True where the server or the connection was lost, and where the server says that it may work later.
    pub(crate) fn is_loss(&self) -> bool {
        let broke = matches!(self.code, Code::Cancelled | Code::Unknown | Code::Internal);
        self.code == Code::Unavailable
            || self.retry_delay.is_some()
            || self.reason == "STREAM_NOT_READY"
            || (self.reason.is_empty() && broke)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => write!(out, "{}", self.message),
            reason => write!(out, "{} ({reason})", self.message),
        }
    }
}

impl std::error::Error for Error {}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let mut error = Self::new(status.code(), "", status.message());
        for detail in RpcStatus::decode(status.details()).unwrap_or_default().details {
            if detail.type_url.ends_with(".ErrorInfo") {
                error.reason = ErrorInfo::decode(&*detail.value).unwrap_or_default().reason;
            } else if detail.type_url.ends_with(".RetryInfo") {
                error.retry_delay = RetryInfo::decode(&*detail.value).ok().and_then(|info| delay(info.retry_delay));
            }
        }
        error
    }
}

impl From<&ItemError> for Error {
    fn from(error: &ItemError) -> Self {
        let retry_delay = delay(error.retry_delay);
        Self { retry_delay, ..Self::new(Code::from_i32(error.code), &error.reason, &error.message) }
    }
}

fn delay(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| duration.try_into().ok())
}

/// google.rpc.Status, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// google.rpc.ErrorInfo.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
}

/// google.rpc.RetryInfo.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}
