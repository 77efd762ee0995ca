//! `ClientMessage`: the client protocol, read in Rust.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::protocol;

/// A frame that a browser sent on its WebSocket: the client protocol of docs/client-protocol.md.
///
/// Source: `src/protocol.rs`.
#[pyclass(frozen, module = "fanwire._core")]
pub struct ClientMessage {
    /// "auth", "subscribe_upload", "unsubscribe_upload", "ping" or "pong".
    #[pyo3(get)]
    action: &'static str,
    /// What an "auth" says who it is with; None otherwise.
    #[pyo3(get)]
    token: Option<String>,
    /// The upload; None for actions that have none.
    #[pyo3(get)]
    upload_id: Option<String>,
    /// Epoch and offset of what the client has of the upload already, for `subscribe_upload`; or None.
    #[pyo3(get)]
    since: Option<(String, u64)>,
}

#[pymethods]
impl ClientMessage {
    /// Reads a frame.
    ///
    /// Args:
    ///     text: the frame, at most 64 KiB.
    ///
    /// Raises:
    ///     ValueError: it is not of the client protocol; the text says why and does not repeat it.
    #[staticmethod]
    fn parse(text: &str) -> PyResult<Self> {
        let message = protocol::ClientMessage::parse(text).map_err(PyValueError::new_err)?;
        let plain = |action| Self { action, token: None, upload_id: None, since: None };
        Ok(match message {
            protocol::ClientMessage::Auth(token) => {
                Self { token: Some(token.into_owned()), ..plain("auth") }
            }
            protocol::ClientMessage::Subscribe(upload, since) => Self {
                upload_id: Some(upload.into_owned()),
                since: since.map(|since| (since.epoch.into_owned(), since.offset)),
                ..plain("subscribe_upload")
            },
            protocol::ClientMessage::Unsubscribe(upload) => {
                Self { upload_id: Some(upload.into_owned()), ..plain("unsubscribe_upload") }
            }
            protocol::ClientMessage::Ping => plain("ping"),
            protocol::ClientMessage::Pong => plain("pong"),
        })
    }

    fn __repr__(&self) -> String {
        // Without the token.
        match &self.upload_id {
            Some(upload) => format!("ClientMessage({:?}, upload_id={upload:?})", self.action),
            None => format!("ClientMessage({:?})", self.action),
        }
    }
}
