//! Opens a connection: place after place, encrypted as the URL wants it.

use std::path::Path;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::{ChannelBinding, Config, SslMode as Encryption};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Error as Cause, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Dsn, SslMode};
use super::place::Place;
use super::socket::{self, Address, Reading, Socket};
use super::{errors, passfile, tls};
use crate::config::BrokerUrl;
use crate::error::Error;
use crate::runtime;

/// The half of a connection that reads and writes the socket.
pub type Connection = tokio_postgres::Connection<Socket, Encrypted>;
type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// Where the server of this system puts its socket, depending on who has built it.
const SOCKETS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// Encodings of which a message comes out as it went in.
const ENCODINGS: [&str; 2] = ["UTF8", "SQL_ASCII"];

/// Connects and authenticates. The caller has a timeout for the whole handshake, of which each place
/// gets an equal share: one that does not answer leaves time for the others.
pub async fn open(
    dsn: &Dsn,
    url: &BrokerUrl,
    limit: Duration,
    reading: Reading,
) -> Result<(Client, Connection), Error> {
    let end = Instant::now() + limit;
    let mut places =
        if dsn.places.is_empty() { vec![own_server(dsn.port)] } else { dsn.places.clone() };
    if dsn.shuffle {
        shuffle(&mut places);
    }
    let mut trouble = None;
    for (index, place) in places.iter().enumerate() {
        let left = u32::try_from(places.len() - index).unwrap_or(u32::MAX);
        let attempt = at(place, dsn, url, reading);
        let attempt = if left == 1 {
            attempt.await
        } else {
            let share = end.saturating_duration_since(Instant::now()) / left;
            let silent = || Error::Timeout { url: url.shown.clone(), after: share };
            timeout(share, attempt).await.unwrap_or_else(|_| Err(silent()))
        };
        match attempt {
            Ok(opened) => return Ok(opened),
            // Another server has the same users and passwords.
            Err(error @ Error::Refused { .. }) => return Err(error),
            Err(error) => trouble = Some(error),
        }
    }
    let nowhere = || Error::Config(format!("{}: it names no server", url.shown));
    Err(trouble.unwrap_or_else(nowhere))
}

/// The server that listens on a socket of this system, or else on its loopback address.
fn own_server(port: u16) -> Place {
    match SOCKETS.iter().find(|dir| socket::path(Path::new(dir), port).exists()) {
        Some(dir) => Place::Unix((*dir).into(), port),
        None => Place::Tcp("localhost".to_owned(), port),
    }
}

fn shuffle(places: &mut [Place]) {
    for last in (1..places.len()).rev() {
        let drawn = runtime::random().get() % (last as u64 + 1);
        places.swap(last, usize::try_from(drawn).unwrap_or(0));
    }
}

async fn at(
    place: &Place,
    dsn: &Dsn,
    url: &BrokerUrl,
    reading: Reading,
) -> Result<(Client, Connection), Error> {
    let mut config = Config::new();
    let user = match &dsn.user {
        Some(user) => user.clone(),
        None => whoami::username().map_err(|error| {
            let url = &url.shown;
            Error::Config(format!("{url}: it names no user, and this process has none: {error}"))
        })?,
    };
    let database = dsn.database.as_ref().unwrap_or(&user);
    let (mut password, mut note) = (dsn.password.clone(), None);
    if let (None, Some(file)) = (&password, &dsn.passfile) {
        match passfile::find(file, place, database, &user) {
            Ok(found) => password = found,
            Err(why) => note = Some(why),
        }
    }
    if let Some(password) = &password {
        config.password(password);
    }
    config.dbname(database).application_name(&dsn.application_name);
    if let Some(options) = &dsn.options {
        config.options(options);
    }
    config.channel_binding(match dsn.channel_binding {
        None => ChannelBinding::Prefer,
        Some(true) => ChannelBinding::Require,
        Some(false) => ChannelBinding::Disable,
    });
    config.user(user);

    let mut attempts = attempts(place, dsn.ssl_mode).iter().peekable();
    while let Some(encryption) = attempts.next() {
        let config = config.clone().ssl_mode(*encryption).clone();
        let tls = if *encryption == Encryption::Disable {
            tls::none()
        } else {
            tls::config(dsn.ssl_mode, &dsn.ssl)
        };
        let tls = tls.map_err(|why| Error::Config(format!("{}: {why}", url.shown)))?;
        match reach(place, dsn, &config, tls, reading).await {
            Ok((client, connection)) => return checked(client, connection, url),
            Err(Failure::Server(error))
                if attempts.peek().is_some() && errors::is_about_encryption(&error) => {}
            Err(Failure::Server(error)) => {
                return Err(errors::of_connecting(&error, url, note.as_deref()));
            }
            Err(Failure::Unreachable(why)) => {
                let reason = url.scrub(&format!("error connecting to server: {why}"));
                return Err(Error::Unreachable { url: url.shown.clone(), reason });
            }
        }
    }
    Err(Error::Config(format!("{}: no way to connect to {place:?}", url.shown)))
}

/// Why there is no connection.
enum Failure {
    /// There is nothing to connect to, or it is not what is wanted now.
    Unreachable(String),
    /// The server, or the connection, says no.
    Server(Cause),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl From<Cause> for Failure {
    fn from(error: Cause) -> Self {
        Self::Server(error)
    }
}

/// Connects to the first address of a place that takes us.
async fn reach(
    place: &Place,
    dsn: &Dsn,
    config: &Config,
    tls: ClientConfig,
    reading: Reading,
) -> Result<(Client, Connection), Failure> {
    let host = match place {
        Place::Tcp(host, _) => host,
        Place::Unix(..) => "", // without encryption
    };
    let mut tls = MakeRustlsConnect::new(tls);
    let mut failure = None;
    for address in socket::addresses(place).await? {
        let Ok(tls) = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls, host);
        match greet(&address, dsn, config, tls, reading).await {
            Ok(opened) => return Ok(opened),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Failure::Unreachable("the name has no address".to_owned())))
}

async fn greet(
    address: &Address,
    dsn: &Dsn,
    config: &Config,
    tls: impl TlsConnect<Socket, Stream = Encrypted>,
    reading: Reading,
) -> Result<(Client, Connection), Failure> {
    let socket = socket::open(address, dsn, reading).await?;
    let (client, connection) = config.connect_raw(socket, tls).await?;
    if dsn.read_write { writable(client, connection).await } else { Ok((client, connection)) }
}

/// Makes sure that the server can be written to.
async fn writable(
    client: Client,
    mut connection: Connection,
) -> Result<(Client, Connection), Failure> {
    let closed = || Failure::Unreachable("the server closed the connection".to_owned());
    let answers = tokio::select! {
        answers = client.simple_query("SHOW transaction_read_only") => answers?,
        ended = &mut connection => return Err(ended.map_or_else(Failure::Server, |()| closed())),
    };
    let is_read_only = answers.iter().any(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
        _ => false,
    });
    if is_read_only {
        return Err(Failure::Unreachable("database does not allow writes".to_owned()));
    }
    Ok((client, connection))
}

/// What is tried one after another, as long as the server minds.
fn attempts(place: &Place, mode: SslMode) -> &'static [Encryption] {
    match (place, mode) {
        // As for libpq, the mode says nothing of a socket of this system.
        (Place::Unix(..), _) | (_, SslMode::Disable) => &[Encryption::Disable],
        (_, SslMode::Allow) => &[Encryption::Disable, Encryption::Require],
        (_, SslMode::Prefer) => &[Encryption::Prefer, Encryption::Disable],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Require],
    }
}

/// Makes sure that the database keeps text as it is.
fn checked(
    client: Client,
    connection: Connection,
    url: &BrokerUrl,
) -> Result<(Client, Connection), Error> {
    let encoding = connection.parameter("server_encoding").unwrap_or("UTF8");
    if !ENCODINGS.contains(&encoding) {
        let reason = format!(
            "the database's encoding is {encoding}, and messages need UTF8 \
             (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)"
        );
        return Err(Error::Refused { url: url.shown.clone(), reason });
    }
    Ok((client, connection))
}
