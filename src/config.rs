//! Where the broker is and what is allowed: parsed once, before anything connects.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::broker::postgres::dsn::{self, Dsn};
use crate::error::Error;
use crate::history;

/// The schemes that name a Redis (or Valkey) server; the `redis` crate parses what follows.
const REDIS_SCHEMES: [&str; 6] = ["redis", "rediss", "valkey", "valkeys", "redis+unix", "unix"];
/// The schemes that name a PostgreSQL database; `broker/postgres/dsn.rs` parses what follows.
const POSTGRES_SCHEMES: [&str; 2] = ["postgresql", "postgres"];

/// A broker's address.
#[derive(Clone, Debug)]
pub enum Target {
    /// The broker inside this process.
    Memory,
    /// A Redis server. Boxed because it is much the larger.
    Redis(Box<ConnectionInfo>),
    /// A PostgreSQL database.
    Postgres(Box<Dsn>),
}

impl Target {
    /// Whether a topic's message travels in an [`Envelope`](crate::message::Envelope), and not as it is.
    pub fn wraps_topics(&self) -> bool {
        match self {
            Self::Memory | Self::Redis(_) => true,
            Self::Postgres(_) => false,
        }
    }
}

/// A broker's address together with the text that may be shown.
#[derive(Clone, Debug)]
pub struct BrokerUrl {
    /// The address.
    pub target: Target,
    /// The URL with its secrets masked: the only form that reaches logs, errors and `repr`.
    pub shown: String,
    /// What a server must not get us to show: some repeat the arguments of a command they refuse.
    secrets: Vec<String>,
}

impl BrokerUrl {
    /// Parses `redis://`, `rediss://`, `unix://`, `redis+unix://`, `valkey://`, `postgresql://`,
    /// `postgres://` and `memory://`.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let shown = mask(url);
        let Some((scheme, rest)) = split_scheme(url) else {
            return Err(Error::Config(format!(
                "{shown:?} is not a broker URL: it has no scheme such as redis:// or memory://"
            )));
        };
        if scheme == "memory" {
            if !rest.is_empty() {
                return Err(Error::Config(format!("{shown:?}: nothing may follow memory://")));
            }
            return Ok(Self { target: Target::Memory, shown, secrets: Vec::new() });
        }
        if POSTGRES_SCHEMES.contains(&scheme) {
            return Self::postgres(rest, shown);
        }
        if let Some((plain, _)) = scheme.split_once('+')
            && POSTGRES_SCHEMES.contains(&plain)
        {
            return Err(Error::Config(format!(
                "{shown:?}: fanwire has a driver of its own; write {plain}:// in place of {scheme}://"
            )));
        }
        if !REDIS_SCHEMES.contains(&scheme) {
            return Err(Error::Config(format!(
                "{shown:?}: unknown scheme {scheme:?}; use redis://, rediss://, unix://, postgresql:// \
                 or memory://"
            )));
        }
        // The crate's message may quote the URL, so only its kind of complaint is passed on.
        let info = url.into_connection_info().map_err(|error| {
            let detail = error.detail().filter(|detail| !detail.contains(rest)).unwrap_or("");
            let colon = if detail.is_empty() { "" } else { ": " };
            let hint = hint(rest);
            Error::Config(format!(
                "{shown:?} is not a Redis URL (redis://[user:password@]host[:port][/database]){colon}{detail}{hint}"
            ))
        })?;
        let is_of_a_socket = matches!(info.addr(), ConnectionAddr::Unix(_));
        if let Some(known) = unknown_parameter(rest, is_of_a_socket) {
            let database = if is_of_a_socket {
                ""
            } else {
                "; the database is the path, as in redis://host/1"
            };
            return Err(Error::Config(format!(
                "{shown:?}: behind the question mark may stand {known}{database}"
            )));
        }
        let password = info.redis_settings().password();
        let secrets = password.filter(|password| !password.is_empty()).map(str::to_owned);
        let secrets = secrets.into_iter().collect();
        Ok(Self { target: Target::Redis(Box::new(info)), shown, secrets })
    }

    fn postgres(rest: &str, shown: String) -> Result<Self, Error> {
        let dsn = Dsn::parse(rest, &|name| std::env::var(name).ok()).map_err(|why| {
            // The reason may quote a parameter that is none, but a part of the password.
            let why = if shown.contains("://***") {
                "a password is followed by @ and a host"
            } else {
                &why
            };
            Error::Config(format!(
                "{shown:?} is not a PostgreSQL URL \
                 (postgresql://[user[:password]@][host][:port][/database][?parameters]): {why}{}",
                hint(rest)
            ))
        })?;
        let secrets = dsn.password.clone().into_iter().collect();
        Ok(Self { target: Target::Postgres(Box::new(dsn)), shown, secrets })
    }

    /// A text of the server, fit to be shown.
    pub fn scrub(&self, text: &str) -> String {
        let text = text.split(", with args beginning with").next().unwrap_or(text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.secrets.iter().fold(text, |text, secret| text.replace(secret, "***"))
    }
}

/// The parameters that a Redis URL may have, if it has another one: who writes one counts on it.
fn unknown_parameter(rest: &str, is_of_a_socket: bool) -> Option<&'static str> {
    let (known, text): (&[&str], _) = if is_of_a_socket {
        (&["db", "user", "pass", "protocol"], "db, user, pass and protocol")
    } else {
        (&["protocol"], "protocol")
    };
    let (_, query) = rest.split('#').next()?.split_once('?')?;
    let mut names =
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next());
    names.any(|name| name.is_none_or(|name| !known.contains(&name))).then_some(text)
}

/// A URL's scheme and what follows it. `://` may stand in a password of what is no URL.
fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    url.split_once("://").filter(|(scheme, _)| scheme.bytes().all(fit))
}

/// Replaces what may be secret in a URL by `***`, also in one that does not parse.
///
/// Kept: scheme, user name, host, port, path, and the query's parameters that are no secrets.
pub fn mask(url: &str) -> String {
    match split_scheme(url) {
        Some((scheme, rest)) => {
            let shown = mask_rest(scheme, rest).unwrap_or_else(|| "***".to_owned());
            format!("{scheme}://{shown}")
        }
        None if url.contains('=') => mask_words(url),
        None => match url.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => mask_word_after_colon(url),
        },
    }
}

/// What follows a scheme. None if it is not clear where its secrets end.
fn mask_rest(scheme: &str, rest: &str) -> Option<String> {
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (rest, None),
    };
    // A `?` inside a password moves the rest of the credentials here.
    if let Some((password, host)) = query.and_then(|query| query.rsplit_once('@'))
        && !before_query.is_empty()
        && !before_query.starts_with('/')
    {
        // The `@` may as well be that of a parameter, maybe a secret one.
        let clear = !password.contains('=') && !host.contains(['?', '&', '=']);
        return clear.then(|| format!("***@{host}"));
    }
    // The last `@`: an unescaped one inside a password must not let the tail of it through.
    let mut shown = match before_query.rsplit_once('@') {
        None if has_ports_only(before_query) => before_query.to_owned(),
        None => return None,
        Some((credentials, host)) => match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            // Only Redis has passwords without users.
            None if scheme.starts_with("postgres") => format!("{credentials}@{host}"),
            // A user name without a password is most likely the password.
            None => format!("***@{host}"),
        },
    };
    if let Some(query) = query {
        let masked: Vec<String> = query.split('&').map(mask_parameter).collect();
        shown = format!("{shown}?{}", masked.join("&"));
    }
    Some(shown)
}

/// Whether what follows a host's colon is a port: a password may stand there whose host was forgotten.
fn has_ports_only(address: &str) -> bool {
    let hosts = address.split('/').next().unwrap_or_default();
    hosts.split(',').all(|host| {
        let after_brackets = host.strip_prefix('[').and_then(|host| host.split_once(']'));
        let name = after_brackets.map_or(host, |(_, rest)| rest);
        let port = name.split_once(':').map_or("", |(_, port)| port);
        port.is_empty() || port.parse::<u16>().is_ok()
    })
}

/// Of what libpq takes besides URLs, the words up to the first that may be secret or hide where it ends.
fn mask_words(text: &str) -> String {
    let harmless = |word: &&str| {
        let plain = !word.contains(['\'', '"', '\\', '@', '?', '&']);
        plain && word.split_once('=').is_some_and(|(name, _)| dsn::SHOWN.contains(&name))
    };
    let words = text.split_whitespace();
    let mut shown: Vec<&str> = words.clone().take_while(harmless).collect();
    if let Some(word) = words.clone().nth(shown.len()) {
        let password = word.starts_with("password=");
        shown.push(if password { "password=***" } else { "***" });
    }
    shown.join(" ")
}

/// Parameters of a Redis URL that are no secrets.
const SHOWN: [&str; 2] = ["db", "protocol"];

fn mask_parameter(pair: &str) -> String {
    match pair.split_once('=') {
        Some((name, value)) if SHOWN.contains(&name) || dsn::SHOWN.contains(&name) => {
            format!("{name}={value}")
        }
        Some((name, _)) => format!("{name}=***"),
        // It may be what follows a `&` in a password.
        None if !pair.is_empty() => "***".to_owned(),
        None => String::new(),
    }
}

/// Without a scheme nothing tells a host from a password, so what follows a colon is hidden.
fn mask_word_after_colon(text: &str) -> String {
    match text.split_once(':') {
        Some((before, after)) if after.parse::<u16>().is_err() => format!("{before}:***"),
        _ => text.to_owned(),
    }
}

/// How much may wait, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for one attempt to connect, authenticate and subscribe.
    pub connect_timeout: Duration,
    /// Time for the broker to answer a batch of publishes.
    pub publish_timeout: Duration,
    /// Time for which a subscription to a topic is waited for.
    pub subscribe_timeout: Duration,
    /// The largest payload a publish accepts, in bytes.
    pub max_message_bytes: usize,
    /// How many messages `publish_nowait` lets wait.
    pub max_pending_messages: usize,
    /// How many bytes of payload `publish_nowait` lets wait.
    pub max_pending_bytes: usize,
    /// What the broker is to keep of each upload, if anything.
    pub history: Option<history::Settings>,
    /// What may wait for a broker that cannot be reached, if anything may.
    pub outage: Option<OutageLimits>,
}

/// What may wait for a broker that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
    /// How long.
    pub time: Duration,
}

impl Default for OutageLimits {
    fn default() -> Self {
        Self { messages: 10_000, bytes: 16 << 20, time: Duration::from_secs(60) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            publish_timeout: Duration::from_secs(2),
            subscribe_timeout: Duration::from_secs(2),
            max_message_bytes: 1 << 20,
            max_pending_messages: 10_000,
            max_pending_bytes: 16 << 20,
            history: None,
            outage: None,
        }
    }
}

/// How to write what may be in a password, for a URL that may have one.
fn hint(rest: &str) -> &'static str {
    if rest.contains(['@', ':']) {
        "; in a password @ / # ? % are written as %40 %2F %23 %3F %25"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        for (url, shown) in [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://:hunter2@localhost", "redis://:***@localhost"),
            ("redis://hunter2@localhost", "redis://***@localhost"),
            ("rediss://app:hunter2@db:6380/1", "rediss://app:***@db:6380/1"),
            ("redis://app:hunt@er2@db", "redis://app:***@db"),
            ("redis://app:hunter2?x@db", "redis://***@db"),
            ("unix:///run/redis.sock?db=1&pass=hunter2", "unix:///run/redis.sock?db=1&pass=***"),
            ("redis+unix:///r.sock?p%61ss=hunter2", "redis+unix:///r.sock?p%61ss=***"),
            ("redis://app:hunter2", "redis://***"),
            ("redis://app:x?hunter2=@db?pass=hunter2", "redis://***"),
            ("redis://[::1]:7000/3", "redis://[::1]:7000/3"),
            ("postgresql://u:hunter2", "postgresql://***"),
            ("postgresql://u:1,hunter2:hunter2/x", "postgresql://***"),
            ("postgresql://u:x/hunter2", "postgresql://***"),
            ("postgresql://u:x?hunter2=y@db/app", "postgresql://***"),
            ("postgresql://u:x@y?hunter2@db/app", "postgresql://***@db/app"),
            ("postgresql://db/app?password=x@hunter2", "postgresql://***"),
            ("postgresql://db/app?password=x&hunter2", "postgresql://db/app?password=***&***"),
            (
                "postgresql:///app?user=a@b&password=x@hunter2",
                "postgresql:///app?user=a@b&password=***",
            ),
            ("postgresql://a:1,[::1]:2,b/app", "postgresql://a:1,[::1]:2,b/app"),
            ("host=db user=ada password=hunter2", "host=db user=ada password=***"),
            ("host=db password='x host=hunter2'", "host=db password=***"),
            ("host=db password = hunter2 port=1", "host=db ***"),
            ("password=x://hunter2", "password=***"),
            ("user='x hunter2' port=1", "***"),
            ("app:hunter2://x", "app:***"),
            ("app:hunter2@db", "***@db"),
            ("redis:hunter2", "redis:***"),
            ("localhost:6379", "localhost:6379"),
            ("postgresql://ada@db/app?sslmode=require", "postgresql://ada@db/app?sslmode=require"),
            ("postgres://ada:hunter2@a,b:1/app", "postgres://ada:***@a,b:1/app"),
            (
                "postgresql:///app?user=ada&password=hunter2&p%61ssword=hunter2",
                "postgresql:///app?user=ada&password=***&p%61ssword=***",
            ),
        ] {
            assert_eq!(mask(url), shown);
            assert!(!mask(url).contains("hunter2"));
        }
    }

    #[test]
    fn what_a_server_repeats_is_scrubbed() {
        let url = BrokerUrl::parse("redis://:hunt%40er2@localhost").unwrap();
        let text =
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'x' 'hunt@er2'";
        assert_eq!(url.scrub(text), "ERR unknown command 'HELLO'");
        assert_eq!(url.scrub("no hunt@er2\n\nhere"), "no *** here");
    }

    #[test]
    fn a_malformed_url_is_named_without_its_password() {
        for url in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis://",
            "redis://:hunter2@localhost:notaport",
            "redis://localhost/hunter2",
            "memory://x",
            "redis://a:hunter2@[::1",
            "redis://:hunt/hunter2@localhost",
            "redis://:hunt#hunter2@localhost",
            "redis://:hunt?hunter2@localhost",
            "amqp://a:hunter2@h",
            "postgresql://a:hunter2@h:x/db",
            "postgresql://a:x?hunter2=x@h/db",
            "postgresql://a:x?sslmode=hunter2@h/db",
            "postgresql://a:hunter2",
            "host=h password=hunter2",
            "postgresql://a:hunter2@h/db?sslmode=x",
            "postgresql+asyncpg://a:hunter2@h/db",
        ] {
            let error = BrokerUrl::parse(url).unwrap_err();
            assert!(error.is_permanent(), "{url}");
            if url != "redis://localhost/hunter2" {
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn a_password_that_has_to_be_written_otherwise_is_told_how() {
        for url in [
            "redis://:a/b@localhost",
            "redis://:a#b@localhost",
            "redis://:a?b@localhost",
            "postgresql://ada:a/b@localhost",
            "postgresql://ada:a?b@localhost",
        ] {
            let error = BrokerUrl::parse(url).unwrap_err();
            assert!(error.to_string().contains("%2F"), "{error}");
        }
        let error = BrokerUrl::parse("redis://localhost/x").unwrap_err();
        assert!(!error.to_string().contains("%2F"), "{error}");
    }

    #[test]
    fn postgresql_has_two_schemes_and_one_driver() {
        for url in ["postgresql://", "postgres://ada@db", "postgresql:///app?host=/run/postgresql"]
        {
            assert!(matches!(BrokerUrl::parse(url).unwrap().target, Target::Postgres(_)), "{url}");
        }
        let error = BrokerUrl::parse("postgresql+asyncpg://ada:hunter2@db/app").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"postgresql+asyncpg://ada:***@db/app\": fanwire has a driver of its own; write \
             postgresql:// in place of postgresql+asyncpg://"
        );
        let url = BrokerUrl::parse("postgresql://ada:hunt%40er2@db").unwrap();
        assert_eq!(url.scrub("no hunt@er2 here"), "no *** here");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn the_spellings_of_the_redis_crate_are_accepted() {
        for url in [
            "redis://localhost",
            "redis://[::1]:7000/3",
            "rediss://localhost/#insecure",
            "unix:///tmp/r.sock",
            "redis+unix:///tmp/r.sock?db=2",
            "redis://localhost/?protocol=resp3",
            "valkey://localhost",
        ] {
            assert!(matches!(BrokerUrl::parse(url).unwrap().target, Target::Redis(_)), "{url}");
        }
        assert!(matches!(BrokerUrl::parse("memory://").unwrap().target, Target::Memory));
    }

    #[test]
    fn no_parameter_is_ignored_that_somebody_counts_on() {
        for (url, why) in [
            ("redis://localhost/?db=3", "protocol; the database is the path"),
            ("rediss://localhost/1?protocol=resp3&timeout=5#insecure", "protocol; the database"),
            ("unix:///tmp/r.sock?db=2&database=3", "db, user, pass and protocol"),
        ] {
            let error = BrokerUrl::parse(url).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Config(_)) && text.contains(why), "{text}");
        }
    }
}
