//! A socket that is read once a millisecond or two while much comes.
//!
//! Whatever comes wakes the I/O thread, and that wakes the event loop. Where a server sends each message
//! by itself, this costs as much as all that is done with the messages. So when they come thick the
//! socket is not watched any more but looked at from time to time, until a look finds nothing. As network
//! cards do it, and for the same reason.

use std::future::Future;
use std::io::{self, ErrorKind, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};

/// Between two looks. The clock of the I/O thread adds up to as much again.
const PAUSE: Duration = Duration::from_millis(1);
/// Something comes thick when it has come so many times in a row within a pause of the time before.
const QUICK: u32 = 8;

/// A socket that the I/O thread watches, and that can do without.
pub trait Watched: AsyncRead + AsyncWrite + Send + Unpin + Sized {
    /// One that it does not watch.
    type Apart: Read + Send + Unpin;

    /// Has it not watched any more.
    fn apart(self) -> io::Result<Self::Apart>;

    /// Has it watched again.
    fn watch(apart: Self::Apart) -> io::Result<Self>;
}

impl Watched for TcpStream {
    type Apart = std::net::TcpStream;

    fn apart(self) -> io::Result<Self::Apart> {
        self.into_std()
    }

    fn watch(apart: Self::Apart) -> io::Result<Self> {
        Self::from_std(apart)
    }
}

#[cfg(unix)]
impl Watched for UnixStream {
    type Apart = std::os::unix::net::UnixStream;

    fn apart(self) -> io::Result<Self::Apart> {
        self.into_std()
    }

    fn watch(apart: Self::Apart) -> io::Result<Self> {
        Self::from_std(apart)
    }
}

enum Socket<S: Watched> {
    Watched(S),
    Apart(S::Apart),
    /// It could not be had watched, or not watched.
    Gone,
}

/// A socket that is looked at from time to time while much comes.
pub struct Moderated<S: Watched> {
    socket: Socket<S>,
    pause: Pin<Box<Sleep>>,
    /// Whether something has come since nothing was left.
    came: bool,
    /// When nothing was left.
    emptied: Instant,
    /// How many times in a row something has come soon after that.
    quick: u32,
}

impl<S: Watched> Moderated<S> {
    /// One that is watched.
    pub fn new(socket: S) -> Self {
        let (socket, pause) = (Socket::Watched(socket), Box::pin(sleep(PAUSE)));
        Self { socket, pause, came: false, emptied: Instant::now(), quick: 0 }
    }

    /// Has it watched again.
    fn watch(&mut self) -> io::Result<&mut S> {
        if !matches!(self.socket, Socket::Watched(_)) {
            if let Socket::Apart(apart) = std::mem::replace(&mut self.socket, Socket::Gone) {
                self.socket = Socket::Watched(S::watch(apart)?);
            }
            self.quick = 0;
        }
        match &mut self.socket {
            Socket::Watched(socket) => Ok(socket),
            _ => Err(ErrorKind::NotConnected.into()),
        }
    }

    fn apart(&mut self) -> io::Result<()> {
        if let Socket::Watched(socket) = std::mem::replace(&mut self.socket, Socket::Gone) {
            self.socket = Socket::Apart(socket.apart()?);
        }
        self.pause.as_mut().reset(Instant::now() + PAUSE);
        Ok(())
    }

    /// Nothing is left. Whether it comes thick.
    fn is_thick(&mut self) -> bool {
        if std::mem::take(&mut self.came) {
            let now = Instant::now();
            self.quick = if now - self.emptied < PAUSE { self.quick + 1 } else { 0 };
            self.emptied = now;
        }
        self.quick >= QUICK
    }
}

impl<S: Watched> AsyncRead for Moderated<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.socket {
                Socket::Watched(socket) => {
                    let outcome = Pin::new(socket).poll_read(context, buffer);
                    if outcome.is_ready() {
                        this.came = true;
                        return outcome;
                    }
                    if !this.is_thick() {
                        return Poll::Pending;
                    }
                    this.apart()?;
                }
                Socket::Apart(socket) => {
                    if !this.came {
                        ready!(this.pause.as_mut().poll(context));
                    }
                    match socket.read(buffer.initialize_unfilled()) {
                        Ok(count) => {
                            this.came = true;
                            buffer.advance(count);
                            return Poll::Ready(Ok(()));
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            if std::mem::take(&mut this.came) {
                                this.pause.as_mut().reset(Instant::now() + PAUSE);
                            } else {
                                this.watch()?;
                            }
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                Socket::Gone => return Poll::Ready(Err(ErrorKind::NotConnected.into())),
            }
        }
    }
}

/// What is written is most often a question: its answer is not to wait.
impl<S: Watched> AsyncWrite for Moderated<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().watch()?).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Watched(socket) => Pin::new(socket).poll_flush(context),
            _ => Poll::Ready(Ok(())), // nothing was written since
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().watch()?).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Moderated<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        far.set_nodelay(true).unwrap();
        (Moderated::new(near), far)
    }

    fn is_apart(socket: &Moderated<TcpStream>) -> bool {
        matches!(socket.socket, Socket::Apart(_))
    }

    /// Looks for a byte before it is sent.
    async fn pass(near: &mut Moderated<TcpStream>, far: &mut TcpStream, byte: u8) {
        let (came, sent) = tokio::join!(near.read_u8(), far.write_u8(byte));
        sent.unwrap();
        assert_eq!(came.unwrap(), byte);
    }

    async fn crowd(near: &mut Moderated<TcpStream>, far: &mut TcpStream) {
        for byte in 0..=u8::MAX {
            pass(near, far, byte).await;
        }
        assert!(is_apart(near));
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_comes_thick_comes_in_order_and_ends() {
        let (mut near, mut far) = pair().await;
        let writing = tokio::spawn(async move {
            for number in 0..50_000 {
                far.write_u32(number).await.unwrap();
                if number % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut looks = 0;
        for number in 0..50_000 {
            assert_eq!(near.read_u32().await.unwrap(), number);
            looks += u32::from(is_apart(&near));
        }
        writing.await.unwrap();
        assert!(looks > 0);
        assert_eq!(near.read_u8().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_quiet_moment_is_read_at_once() {
        let (mut near, mut far) = pair().await;
        for byte in 0..100 {
            tokio::time::advance(PAUSE).await;
            pass(&mut near, &mut far, byte).await;
            assert!(!is_apart(&near));
        }
        crowd(&mut near, &mut far).await;
        let late = tokio::spawn(async move {
            sleep(100 * PAUSE).await;
            far.write_u8(7).await.unwrap();
            far
        });
        assert_eq!(near.read_u8().await.unwrap(), 7);
        assert!(!is_apart(&near));
        drop(late.await.unwrap());
        assert_eq!(near.read_u8().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_read_at_once() {
        let (mut near, mut far) = pair().await;
        crowd(&mut near, &mut far).await;
        near.write_u8(1).await.unwrap();
        near.flush().await.unwrap();
        assert!(!is_apart(&near));
        assert_eq!(far.read_u8().await.unwrap(), 1);
        pass(&mut near, &mut far, 2).await;
        crowd(&mut near, &mut far).await;
        near.shutdown().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
