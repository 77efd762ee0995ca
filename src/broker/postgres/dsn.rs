//! The address of a database: a URL, and what the environment says where the URL does not, as for libpq.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::{self, Place};

/// Whether the connection is encrypted, and what of the server's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server wants no other.
    Allow,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted, and the certificate verified if there is something to verify it with.
    Require,
    /// Encrypted, by a server that an authority has certified.
    VerifyCa,
    /// Encrypted, by the very server that was named.
    VerifyFull,
}

/// Where certificates and keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SslFiles {
    /// The authorities' certificates; `system` for those of the system.
    pub root: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Signs of life on an idle TCP connection; what is None is the system's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether there are any.
    pub on: bool,
    /// After how much silence.
    pub idle: Duration,
    /// How long after one that was not answered.
    pub interval: Option<Duration>,
    /// How many may go unanswered.
    pub count: Option<u32>,
    /// How long what was sent may go unanswered.
    pub user_timeout: Option<Duration>,
}

/// Everything that is needed to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    /// Where to look for a server, in order. None at all: where this system's own server is.
    pub places: Vec<Place>,
    /// The port where no place says another.
    pub port: u16,
    /// Who we are; None for the name of this process's user.
    pub user: Option<String>,
    /// The password, if it does not stand in a file.
    pub password: Option<String>,
    /// The file with passwords.
    pub passfile: Option<PathBuf>,
    /// The database; None for one that is called as the user.
    pub database: Option<String>,
    /// How it is encrypted.
    pub ssl_mode: SslMode,
    /// With what.
    pub ssl: SslFiles,
    /// Whether the password is to be bound to the encrypted connection: None if possible.
    pub channel_binding: Option<bool>,
    /// How we call ourselves.
    pub application_name: String,
    /// Command-line options for the server.
    pub options: Option<String>,
    /// How long one place is tried.
    pub connect_timeout: Option<Duration>,
    /// Whether a server that cannot be written to is passed over.
    pub read_write: bool,
    /// Whether places are tried in random order.
    pub shuffle: bool,
    /// Signs of life.
    pub keepalives: Keepalives,
}

/// Without its secrets.
impl std::fmt::Debug for Dsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { places, database, ssl_mode, .. } = self;
        write!(f, "Dsn({places:?}, {database:?}, {ssl_mode:?})")
    }
}

/// What a query may say, besides `password`; all of it may be shown.
pub const SHOWN: [&str; 26] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "passfile",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
    "sslcertmode",
];

/// The environment, which tests make up.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

impl Dsn {
    /// Parses what follows `postgresql://`. The error never quotes a secret.
    pub fn parse(rest: &str, environment: Environment<'_>) -> Result<Self, String> {
        let (address, query) = rest.split_once('?').map_or((rest, ""), |(a, q)| (a, q));
        let mut said = Said { query: Vec::new(), environment };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err("a parameter has no value".to_owned());
            };
            let name = place::decoded(name)?;
            if name != "password" && !SHOWN.contains(&&*name) {
                let known = SHOWN.join(", ");
                return Err(format!("unknown parameter {name:?}; known are password, {known}"));
            }
            said.query.push((name, place::decoded(value)?));
        }
        let (authority, database) =
            address.split_once('/').map_or((address, ""), |(a, database)| (a, database));
        let (credentials, hosts) =
            authority.rsplit_once('@').map_or(("", authority), |(c, hosts)| (c, hosts));
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(place::decoded(password)?)),
            None => (credentials, None),
        };
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        said.finish(
            hosts,
            given(place::decoded(user)?),
            password.and_then(given),
            given(place::decoded(database)?),
        )
    }
}

/// What the query and the environment say.
struct Said<'e> {
    query: Vec<(String, String)>,
    environment: Environment<'e>,
}

impl Said<'_> {
    /// A parameter of the query; the last one counts.
    fn parameter(&self, name: &str) -> Option<&str> {
        let of_name = self.query.iter().rev().find(|(other, _)| other == name);
        of_name.map(|(_, value)| &**value).filter(|value| !value.is_empty())
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }

    fn either(&self, parameter: &str, variable: &str) -> Option<String> {
        self.parameter(parameter).map(str::to_owned).or_else(|| self.variable(variable))
    }

    fn number(&self, parameter: &str, variable: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.either(parameter, variable) else { return Ok(None) };
        let number = text.trim().parse().map(Some);
        number.map_err(|_| format!("{parameter} must be a number, not {text:?}"))
    }

    /// 0 is none.
    fn seconds(&self, parameter: &str, variable: &str) -> Result<Option<Duration>, String> {
        let seconds = self.number(parameter, variable)?.filter(|seconds| *seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.min(u64::from(u32::MAX)))))
    }

    fn flag(&self, parameter: &str, default: bool) -> Result<bool, String> {
        Ok(self.number(parameter, "")?.map_or(default, |number| number != 0))
    }

    /// One of some words.
    fn word<T: Copy>(
        &self,
        parameter: &str,
        variable: &str,
        words: &[(&str, T)],
        default: T,
    ) -> Result<T, String> {
        let Some(text) = self.either(parameter, variable) else { return Ok(default) };
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("{parameter} must be one of {}, not {text:?}", words.join(", "))
        })
    }

    fn path(&self, parameter: &str, variable: &str, in_home: &str) -> Option<PathBuf> {
        let given = self.either(parameter, variable).map(PathBuf::from);
        given.or_else(|| {
            let path = Path::new(&self.variable("HOME")?).join(in_home);
            path.exists().then_some(path)
        })
    }

    fn finish(
        self,
        hosts: &str,
        user: Option<String>,
        password: Option<String>,
        database: Option<String>,
    ) -> Result<Dsn, String> {
        let ports = self.either("port", "PGPORT").unwrap_or_default();
        let places = match self.parameter("host") {
            Some(names) => place::several(names.split(','), &ports)?,
            None if !hosts.is_empty() => {
                let all: Vec<_> =
                    hosts.split(',').map(place::host_and_port).collect::<Result<_, _>>()?;
                let fallback = place::port_of(&ports)?;
                all.into_iter()
                    .map(|(name, port)| place::place(&name, port.unwrap_or(fallback)))
                    .collect()
            }
            None => match self.variable("PGHOST") {
                Some(names) => place::several(names.split(','), &ports)?,
                None => Vec::new(),
            },
        };
        for (parameter, wanted) in [
            ("client_encoding", &["utf8", "utf-8", "auto", "unicode"][..]),
            ("gssencmode", &["disable", "prefer"]),
        ] {
            let value = self.parameter(parameter).map(str::to_ascii_lowercase);
            if value.is_some_and(|value| !wanted.contains(&&*value)) {
                return Err(format!("{parameter} can only be {}", wanted.join(" or ")));
            }
        }
        self.word("sslnegotiation", "", &[("postgres", ())], ())?;
        let attributes = [("any", false), ("read-write", true), ("primary", true)];
        let given = self.either("target_session_attrs", "PGTARGETSESSIONATTRS");
        if let Some(given @ ("read-only" | "standby" | "prefer-standby")) = given.as_deref() {
            return Err(format!(
                "target_session_attrs={given} makes no sense here: a standby neither listens nor notifies"
            ));
        }
        Ok(Dsn {
            port: place::port_of(&ports)?,
            user: user.or_else(|| self.either("user", "PGUSER")),
            password: password.or_else(|| self.either("password", "PGPASSWORD")),
            passfile: self.path("passfile", "PGPASSFILE", ".pgpass"),
            database: database.or_else(|| self.either("dbname", "PGDATABASE")),
            ssl_mode: self.word("sslmode", "PGSSLMODE", &SSL_MODES, SslMode::Prefer)?,
            ssl: SslFiles {
                root: self.path("sslrootcert", "PGSSLROOTCERT", ".postgresql/root.crt"),
                cert: self.path("sslcert", "PGSSLCERT", ".postgresql/postgresql.crt"),
                key: self.path("sslkey", "PGSSLKEY", ".postgresql/postgresql.key"),
            },
            channel_binding: self.word(
                "channel_binding",
                "PGCHANNELBINDING",
                &[("disable", Some(false)), ("prefer", None), ("require", Some(true))],
                None,
            )?,
            application_name: self
                .either("application_name", "PGAPPNAME")
                .or_else(|| self.parameter("fallback_application_name").map(str::to_owned))
                .unwrap_or_else(|| "fanwire".to_owned()),
            options: self.either("options", "PGOPTIONS"),
            connect_timeout: self.seconds("connect_timeout", "PGCONNECT_TIMEOUT")?,
            // Of several servers all but one are standbys.
            read_write: self.word(
                "target_session_attrs",
                "PGTARGETSESSIONATTRS",
                &attributes,
                places.len() > 1,
            )?,
            shuffle: self.word(
                "load_balance_hosts",
                "PGLOADBALANCEHOSTS",
                &[("disable", false), ("random", true)],
                false,
            )?,
            keepalives: Keepalives {
                on: self.flag("keepalives", true)?,
                idle: self.seconds("keepalives_idle", "")?.unwrap_or(Duration::from_secs(30)),
                interval: self.seconds("keepalives_interval", "")?,
                count: self.number("keepalives_count", "")?.and_then(|n| u32::try_from(n).ok()),
                user_timeout: self.number("tcp_user_timeout", "")?.map(Duration::from_millis),
            },
            places,
        })
    }
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str, variables: &[(&str, &str)]) -> Result<Dsn, String> {
        Dsn::parse(rest, &|name| {
            let variable = variables.iter().find(|(other, _)| *other == name);
            variable.map(|(_, value)| (*value).to_owned())
        })
    }

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp(host.to_owned(), port)
    }

    #[test]
    fn urls_are_those_of_libpq() {
        let dsn =
            parse("ada:p%40ss%3A@db:5433/app?sslmode=require&application_name=x%20y", &[]).unwrap();
        assert_eq!(dsn.places, [tcp("db", 5433)]);
        assert_eq!((dsn.user.as_deref(), dsn.password.as_deref()), (Some("ada"), Some("p@ss:")));
        assert_eq!((dsn.database.as_deref(), dsn.ssl_mode), (Some("app"), SslMode::Require));
        assert_eq!((&*dsn.application_name, dsn.read_write), ("x y", false));

        let dsn = parse("a:1,b,[::1]:3,[fe80::1]/app?port=9", &[]).unwrap();
        assert_eq!(dsn.places, [tcp("a", 1), tcp("b", 9), tcp("::1", 3), tcp("fe80::1", 9)]);
        assert!(dsn.read_write, "of several all but one are standbys");
        assert!(!parse("a,b/?target_session_attrs=any", &[]).unwrap().read_write);
        assert!(parse("a/?target_session_attrs=primary", &[]).unwrap().read_write);

        let socket = [Place::Unix("/run/pg".into(), 6000)];
        assert_eq!(parse("%2Frun%2Fpg:6000/app", &[]).unwrap().places, socket);
        assert_eq!(parse("/app?host=/run/pg&port=6000", &[]).unwrap().places, socket);
        assert_eq!(parse("?host=%2Frun%2Fpg&port=6000", &[]).unwrap().places, socket);
        let dsn = parse("?host=a,b&port=1,2", &[]).unwrap();
        assert_eq!(dsn.places, [tcp("a", 1), tcp("b", 2)]);
        assert_eq!(parse("?host=a,b&port=7", &[]).unwrap().places, [tcp("a", 7), tcp("b", 7)]);
    }

    #[test]
    fn the_environment_says_what_the_url_does_not() {
        let variables = [
            ("PGHOST", "h"),
            ("PGPORT", "7"),
            ("PGUSER", "u"),
            ("PGPASSWORD", "w"),
            ("PGDATABASE", "d"),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "system"),
            ("PGAPPNAME", "n"),
            ("PGOPTIONS", "-c x=y"),
            ("PGCONNECT_TIMEOUT", "4"),
            ("PGPASSFILE", "/f"),
            ("PGTARGETSESSIONATTRS", "read-write"),
        ];
        let dsn = parse("", &variables).unwrap();
        assert_eq!(dsn.places, [tcp("h", 7)]);
        assert_eq!((dsn.user.as_deref(), dsn.password.as_deref()), (Some("u"), Some("w")));
        assert_eq!((dsn.database.as_deref(), dsn.ssl_mode), (Some("d"), SslMode::VerifyFull));
        assert_eq!(dsn.ssl.root, Some("system".into()));
        assert_eq!((&*dsn.application_name, dsn.options.as_deref()), ("n", Some("-c x=y")));
        assert_eq!(dsn.connect_timeout, Some(Duration::from_secs(4)));
        assert_eq!(dsn.passfile, Some("/f".into()));
        assert!(dsn.read_write);

        let dsn =
            parse("v:x@i/e?sslmode=disable&connect_timeout=0&passfile=/g", &variables).unwrap();
        assert_eq!(dsn.places, [tcp("i", 7)]);
        assert_eq!((dsn.user.as_deref(), dsn.password.as_deref()), (Some("v"), Some("x")));
        assert_eq!((dsn.database.as_deref(), dsn.ssl_mode), (Some("e"), SslMode::Disable));
        assert_eq!((dsn.connect_timeout, dsn.passfile), (None, Some("/g".into())));

        let dsn = parse("", &[]).unwrap();
        assert_eq!((dsn.places.len(), dsn.port, dsn.user, dsn.database), (0, 5432, None, None));
        assert_eq!((&*dsn.application_name, dsn.ssl_mode), ("fanwire", SslMode::Prefer));
        assert_eq!(parse("", &[("PGHOST", ""), ("PGPORT", "")]).unwrap().places, []);
    }

    #[test]
    fn what_makes_no_sense_is_told_without_secrets() {
        for (rest, word) in [
            ("a:hunter2@db:x/app", "port"),
            ("a:hunter2@db:0/app", "port"),
            ("a:hunter2@db:99999/app", "port"),
            ("a:hunter2%@db/app", "%"),
            ("a:hunter2%zz@db/app", "%"),
            ("a:hunter2%ff@db/app", "UTF-8"),
            ("a:hunter2%00@db/app", "%00"),
            ("a:hunter2@[::1/app", "bracket"),
            ("a:hunter2@[::1]x/app", "bracket"),
            ("db/app?pool_size=5", "pool_size"),
            ("db/app?sslmode=yes", "sslmode"),
            ("db/app?connect_timeout=soon", "connect_timeout"),
            ("db/app?target_session_attrs=standby", "standby"),
            ("db/app?client_encoding=latin1", "client_encoding"),
            ("db/app?gssencmode=require", "gssencmode"),
            ("db/app?sslmode", "no value"),
            ("?host=a,b&port=1,2,3", "3 ports"),
        ] {
            let why = parse(rest, &[]).unwrap_err();
            assert!(why.contains(word) && !why.contains("hunter2"), "{rest}: {why}");
        }
    }
}
