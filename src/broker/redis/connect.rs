//! Opens a stream to a Redis server: TCP, TLS or a Unix socket.

use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::broker::Duplex;
use crate::broker::tls::{self, AnyCertificate};
use crate::config::BrokerUrl;
use crate::error::Error;

/// Opens a stream to the server. No timeout of its own: the caller has one for the whole handshake.
pub async fn open(info: &ConnectionInfo, url: &BrokerUrl) -> Result<Box<dyn Duplex>, Error> {
    let unreachable = |error: std::io::Error| Error::Unreachable {
        url: url.shown.clone(),
        reason: error.to_string(),
    };
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            Ok(Box::new(stream))
        }
        ConnectionAddr::TcpTls { host, port, insecure, .. } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            let refused = |reason: String| Error::Refused { url: url.shown.clone(), reason };
            let name = ServerName::try_from(host.clone()).map_err(|error| {
                refused(format!("{host:?} is no name for a TLS server: {error}"))
            })?;
            let config = tls_config(*insecure).map_err(refused)?;
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(
                |error| {
                    // A certificate that does not verify, or a peer that does not speak TLS, stays so.
                    match error.kind() {
                        std::io::ErrorKind::InvalidData => refused(format!("TLS: {error}")),
                        _ => unreachable(error),
                    }
                },
            )?;
            Ok(Box::new(stream))
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await.map_err(unreachable)?;
            Ok(Box::new(stream))
        }
        other => {
            Err(Error::Config(format!("{}: cannot connect to {other:?} on this system", url.shown)))
        }
    }
}

/// The system's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), or no check at all
/// for a URL that ends in `#insecure`.
fn tls_config(insecure: bool) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    if insecure {
        let verifier = Arc::new(AnyCertificate::new());
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(tls::system()?);
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
