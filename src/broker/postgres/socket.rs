//! Opens a socket to a server, and sets what libpq sets.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dsn::{Dsn, Keepalives};
use super::place::Place;
use crate::broker::Duplex;
use crate::broker::moderated::{Moderated, Watched};

/// How a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Whenever something comes.
    AtOnce,
    /// From time to time while much comes.
    Moderated,
}

/// One of the addresses of a place.
#[derive(Debug)]
pub enum Address {
    /// Over the network.
    Tcp(SocketAddr),
    /// A socket of this system.
    Unix(PathBuf),
}

/// A socket that is connected.
pub struct Socket(Box<dyn Duplex>);

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The socket of this system that a server on a port has in a directory.
pub fn path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// The addresses of a place, at least one.
pub async fn addresses(place: &Place) -> Result<Vec<Address>, Error> {
    let found: Vec<Address> = match place {
        Place::Unix(dir, port) => vec![Address::Unix(path(dir, *port))],
        Place::Tcp(host, port) => {
            tokio::net::lookup_host((host.as_str(), *port)).await?.map(Address::Tcp).collect()
        }
    };
    let none = || Error::new(ErrorKind::InvalidInput, "the name has no address");
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

/// Connects a socket.
pub async fn open(address: &Address, dsn: &Dsn, reading: Reading) -> Result<Socket, Error> {
    match address {
        Address::Tcp(address) => {
            let socket = within(dsn.connect_timeout, TcpStream::connect(*address)).await?;
            socket.set_nodelay(true)?;
            keep_alive(&socket, &dsn.keepalives)?;
            Ok(read(socket, reading))
        }
        #[cfg(unix)]
        Address::Unix(path) => {
            let connecting = tokio::net::UnixStream::connect(path);
            Ok(read(within(dsn.connect_timeout, connecting).await?, reading))
        }
        #[cfg(not(unix))]
        Address::Unix(_) => Err(ErrorKind::Unsupported.into()),
    }
}

fn read(socket: impl Watched + 'static, reading: Reading) -> Socket {
    Socket(match reading {
        Reading::AtOnce => Box::new(socket),
        Reading::Moderated => Box::new(Moderated::new(socket)),
    })
}

async fn within<T>(
    limit: Option<Duration>,
    connecting: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(limit) = limit else { return connecting.await };
    let late = || Error::new(ErrorKind::TimedOut, "connection timed out");
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(late()))
}

fn keep_alive(socket: &TcpStream, keepalives: &Keepalives) -> Result<(), Error> {
    let socket = SockRef::from(socket);
    #[cfg(target_os = "linux")]
    if let Some(limit) = keepalives.user_timeout {
        socket.set_tcp_user_timeout(Some(limit))?;
    }
    if !keepalives.on {
        return Ok(());
    }
    let mut settings = TcpKeepalive::new().with_time(keepalives.idle);
    if let Some(interval) = keepalives.interval {
        settings = settings.with_interval(interval);
    }
    if let Some(count) = keepalives.count {
        settings = settings.with_retries(count);
    }
    socket.set_tcp_keepalive(&settings)
}
