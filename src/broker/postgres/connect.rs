//! Opens a connection: place after place, encrypted as the URL wants it.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::config::{ChannelBinding, Config, SslMode as Encryption, TargetSessionAttrs};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Dsn, SslMode};
use super::place::Place;
use super::{errors, passfile, tls};
use crate::config::BrokerUrl;
use crate::error::Error;
use crate::runtime;

/// The half of a connection that reads and writes the socket.
pub type Connection =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

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
        let attempt = at(place, dsn, url);
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
    let socket = |dir: &&str| Path::new(dir).join(format!(".s.PGSQL.{port}")).exists();
    match SOCKETS.iter().find(|dir| socket(dir)) {
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

async fn at(place: &Place, dsn: &Dsn, url: &BrokerUrl) -> Result<(Client, Connection), Error> {
    let mut config = Config::new();
    match place {
        Place::Tcp(host, port) => config.host(host).port(*port),
        Place::Unix(dir, port) => config.host_path(dir).port(*port),
    };
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
    config.dbname(database).application_name(&dsn.application_name).keepalives(dsn.keepalives.on);
    config.keepalives_idle(dsn.keepalives.idle);
    if let Some(interval) = dsn.keepalives.interval {
        config.keepalives_interval(interval);
    }
    if let Some(count) = dsn.keepalives.count {
        config.keepalives_retries(count);
    }
    if let Some(timeout) = dsn.keepalives.user_timeout {
        config.tcp_user_timeout(timeout);
    }
    if let Some(timeout) = dsn.connect_timeout {
        config.connect_timeout(timeout);
    }
    if let Some(options) = &dsn.options {
        config.options(options);
    }
    if dsn.read_write {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
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
        match config.connect(MakeRustlsConnect::new(tls)).await {
            Ok((client, connection)) => return checked(client, connection, url),
            Err(error) if attempts.peek().is_some() && errors::is_about_encryption(&error) => {}
            Err(error) => return Err(errors::of_connecting(&error, url, note.as_deref())),
        }
    }
    Err(Error::Config(format!("{}: no way to connect to {place:?}", url.shown)))
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
