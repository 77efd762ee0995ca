//! The file with passwords, `~/.pgpass`, as libpq reads it.

use std::path::Path;

use super::place::Place;

/// The password for a place, a database and a user. The error says why the file is not read.
pub fn find(
    file: &Path,
    place: &Place,
    database: &str,
    user: &str,
) -> Result<Option<String>, String> {
    let shown = file.display();
    let Ok(metadata) = std::fs::metadata(file) else { return Ok(None) };
    if !metadata.is_file() {
        return Err(format!("the password file {shown} is no plain file"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(format!(
                "the password file {shown} is not read, because its permissions are {mode:04o}; \
                 they must be 0600 or less"
            ));
        }
    }
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("the password file {shown} is not read: {error}"))?;
    Ok(text.lines().find_map(|line| password(line, place, database, user)))
}

/// The password of a line, if the line is for this.
fn password(line: &str, place: &Place, database: &str, user: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let [host, port, of_database, of_user, password] = fields(line)?;
    let is = |field: &str, value: &str| field == "*" || field == value;
    let is_here = match place {
        Place::Tcp(name, number) => is(&host, name) && is(&port, &number.to_string()),
        Place::Unix(dir, number) => {
            (is(&host, "localhost") || dir.as_os_str() == &*host) && is(&port, &number.to_string())
        }
    };
    (is_here && is(&of_database, database) && is(&of_user, user)).then_some(password)
}

/// Five fields between colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields: [String; 5] = Default::default();
    let mut at = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => fields[at].extend(characters.next()),
            ':' if at < 4 => at += 1,
            // Behind the password nothing counts.
            ':' => break,
            other => fields[at].push(other),
        }
    }
    (at == 4).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_whom_they_name() {
        let tcp = Place::Tcp("db.example".to_owned(), 5432);
        let find = |line: &str, place: &Place| password(line, place, "app", "ada");
        assert_eq!(find("db.example:5432:app:ada:pass", &tcp).as_deref(), Some("pass"));
        assert_eq!(find("*:*:*:*:p\\:w\\\\d:rest", &tcp).as_deref(), Some("p:w\\d"));
        for line in
            ["", "#*:*:*:*:x", "*:*:*:x", "other:*:*:*:x", "*:5433:*:*:x", "*:*:b:*:x", "*:*:*:b:x"]
        {
            assert_eq!(find(line, &tcp), None, "{line}");
        }
        let unix = Place::Unix("/run/postgresql".into(), 5432);
        assert_eq!(find("localhost:*:*:*:x", &unix).as_deref(), Some("x"));
        assert_eq!(find("/run/postgresql:*:*:*:x", &unix).as_deref(), Some("x"));
        assert_eq!(find("/tmp:*:*:*:x", &unix), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir();
        let file = dir.join(format!("fanwire-pgpass-{}", crate::runtime::random()));
        let place = Place::Tcp("h".to_owned(), 1);
        assert_eq!(find(&file, &place, "d", "u"), Ok(None));
        std::fs::write(&file, "x\n*:*:*:*:first\n*:*:*:*:second\n").unwrap();
        for (mode, is_read) in [(0o640, false), (0o604, false), (0o600, true), (0o400, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            match find(&file, &place, "d", "u") {
                Ok(password) => {
                    assert!(is_read && password.as_deref() == Some("first"), "{mode:o}");
                }
                Err(why) => assert!(!is_read && why.contains("0600"), "{why}"),
            }
        }
        std::fs::remove_file(&file).unwrap();
    }
}
