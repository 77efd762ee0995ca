//! Where a server may be, as URLs and the environment say it.

use std::path::PathBuf;

/// Where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The directory of a Unix socket, and the port that the socket's name shows.
    Unix(PathBuf, u16),
}

/// Names with ports: one for all, or one for each.
pub(super) fn several<'a>(
    names: impl Iterator<Item = &'a str>,
    ports: &str,
) -> Result<Vec<Place>, String> {
    let names: Vec<&str> = names.collect();
    let ports: Vec<&str> = ports.split(',').collect();
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(format!("{} ports for {} hosts", ports.len(), names.len()));
    }
    let ports = ports.iter().cycle();
    names.iter().zip(ports).map(|(name, port)| Ok(place(name, port_of(port)?))).collect()
}

/// A port; the standard one where there is none, and the first of several.
pub(super) fn port_of(text: &str) -> Result<u16, String> {
    let first = text.split(',').next().unwrap_or_default().trim();
    if first.is_empty() {
        return Ok(5432);
    }
    let port = first.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "a port must be a number from 1 to 65535".to_owned())
}

/// `host`, `host:port`, `[::1]:port`, `%2Frun%2Fpostgresql:port`
pub(super) fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) =
                rest.split_once(']').ok_or("an address in brackets does not end")?;
            let port = if rest.is_empty() { None } else { rest.strip_prefix(':') };
            if !rest.is_empty() && port.is_none() {
                return Err("after an address in brackets only a port may follow".to_owned());
            }
            (address, port)
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.filter(|port| !port.is_empty()).map(port_of).transpose()?;
    Ok((decoded(host)?, port))
}

/// Of a name, or of a directory.
pub(super) fn place(name: &str, port: u16) -> Place {
    // `@` begins a name in Linux's abstract namespace for libpq; it is no host either way.
    if name.starts_with('/') {
        Place::Unix(name.into(), port)
    } else {
        Place::Tcp(if name.is_empty() { "localhost" } else { name }.to_owned(), port)
    }
}

/// Undoes percent-encoding.
pub(super) fn decoded(text: &str) -> Result<String, String> {
    const NONE: &str =
        "a % is not followed by two hexadecimal digits (write %25 for the sign itself)";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return Err(NONE.to_owned()) };
        let digit =
            |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
            return Err(NONE.to_owned());
        };
        bytes.push(high << 4 | low);
        rest = tail;
    }
    if bytes.contains(&0) {
        return Err("%00 has no place in it".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 behind its percent signs".to_owned())
}
