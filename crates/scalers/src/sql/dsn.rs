//! Connection strings: PostgreSQL's two forms (`host=… user=…`, `postgres://…`) and that of Go's MySQL driver.
//!
//! **Invariant:** an error never quotes the string: there may be a password in it.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use crate::source::OpenError;

/// Settings by libpq's names; `host` and `port` may be lists.
pub(super) type Settings = BTreeMap<String, String>;

/// Reads either form of a PostgreSQL connection string.
///
/// # Errors
/// Says which form it is not.
pub(super) fn postgresql(text: &str) -> Result<Settings, OpenError> {
    let text = text.trim();
    match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        Some(rest) => url(rest),
        None => words(text),
    }
}

/// `key=value`, `key = 'value with \' and blanks'`.
fn words(text: &str) -> Result<Settings, OpenError> {
    let wrong = || OpenError::metadata("connection is neither `host=… user=…` nor `postgresql://…`");
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(wrong)?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let after = after.trim_start();
        let (is_quoted, after) = after.strip_prefix('\'').map_or((false, after), |inner| (true, inner));
        let (mut value, mut is_closed) = (String::new(), !is_quoted);
        let mut chars = after.char_indices();
        rest = "";
        while let Some((index, char)) = chars.next() {
            match char {
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if is_quoted => {
                    (rest, is_closed) = (&after[index + 1..], true);
                    break;
                }
                blank if !is_quoted && blank.is_whitespace() => {
                    rest = &after[index..];
                    break;
                }
                other => value.push(other),
            }
        }
        if !is_closed {
            return Err(OpenError::metadata("connection has a quote that does not end"));
        }
        settings.insert(key.to_owned(), value);
        rest = rest.trim_start();
    }
    Ok(settings)
}

/// `user:password@host:port,host:port/database?key=value`.
fn url(rest: &str) -> Result<Settings, OpenError> {
    let mut settings = Settings::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut set = |key: &str, value: &str| -> Result<(), OpenError> {
        let value = decoded(value)?;
        if !value.is_empty() {
            settings.insert(key.to_owned(), value);
        }
        Ok(())
    };
    set("user", user)?;
    set("password", password)?;
    set("dbname", database)?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|host| !host.is_empty()) {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port),
            _ => (host, ""),
        };
        names.push(name.trim_matches(['[', ']']));
        ports.push(port);
    }
    set("host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        set("port", &ports.join(","))?;
    }
    for (key, value) in query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('=')) {
        set(key, value)?;
    }
    Ok(settings)
}

fn decoded(text: &str) -> Result<String, OpenError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| OpenError::metadata("connection has a part that is no text"))
}

/// What a MySQL connection string says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MySqlDsn {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// `host:port`, or a host.
    pub(super) address: String,
    pub(super) database: Option<String>,
    /// The parameter `tls`.
    pub(super) tls: Option<String>,
}

/// Reads `user:password@tcp(host:port)/database?tls=true`.
///
/// # Errors
/// Says what is missing.
pub(super) fn mysql(text: &str) -> Result<MySqlDsn, OpenError> {
    let wrong = || OpenError::metadata("connectionString is not of the form user:password@tcp(host:port)/database");
    let (place, database) = text.trim().rsplit_once('/').ok_or_else(wrong)?;
    let (login, network) = place.rsplit_once('@').unwrap_or(("", place));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let address = match network.split_once('(') {
        Some(("tcp" | "", address)) => address.strip_suffix(')').ok_or_else(wrong)?,
        Some(_) => return Err(OpenError::metadata("connectionString asks for a network other than tcp")),
        None if network.is_empty() || network == "tcp" => "127.0.0.1:3306",
        None => return Err(wrong()),
    };
    let (database, parameters) = database.split_once('?').unwrap_or((database, ""));
    let tls = parameters.split('&').find_map(|pair| pair.strip_prefix("tls="));
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(MySqlDsn {
        user: given(user),
        password: given(password),
        address: address.to_owned(),
        database: given(&decoded(database)?),
        tls: tls.and_then(given),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_postgresql() {
        let show = |text: &str| match postgresql(text) {
            Ok(settings) => settings.iter().map(|(key, value)| format!("{key}={value};")).collect::<String>(),
            Err(error) => error.to_string(),
        };
        for (text, expected) in [
            ("host=a port=1 user=u password='p \\' w' dbname=d", "dbname=d;host=a;password=p ' w;port=1;user=u;"),
            ("host = a\n user= u", "host=a;user=u;"),
            ("password='' host=a", "host=a;password=;"),
            ("password=a\\ b host=a", "host=a;password=a b;"),
            (
                "postgres://u:p%40w@a:5433/d?sslmode=disable",
                "dbname=d;host=a;password=p@w;port=5433;sslmode=disable;user=u;",
            ),
            ("postgresql://a,[::1]:2/d", "dbname=d;host=a,::1;port=,2;"),
            ("postgresql://u@a", "host=a;user=u;"),
            ("nonsense", "connection is neither `host=… user=…` nor `postgresql://…`"),
            ("password='x host=a", "connection has a quote that does not end"),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
    }

    #[test]
    fn the_form_of_mysql() {
        let show = |text: &str| match mysql(text) {
            Ok(dsn) => {
                let part = |part: Option<String>| part.unwrap_or_else(|| "-".to_owned());
                let (user, password) = (part(dsn.user), part(dsn.password));
                format!("{user} {password} {} {} {}", dsn.address, part(dsn.database), part(dsn.tls))
            }
            Err(error) => error.to_string(),
        };
        let form = "connectionString is not of the form user:password@tcp(host:port)/database";
        for (text, expected) in [
            ("u:p@tcp(db:3307)/jobs?tls=true&parseTime=true", "u p db:3307 jobs true"),
            ("u:p@ss/w:rd@tcp(db)/jobs", "u p@ss/w:rd db jobs -"),
            ("u@tcp([::1]:1)/", "u - [::1]:1 - -"),
            ("/jobs", "- - 127.0.0.1:3306 jobs -"),
            ("u:p@unix(/tmp/s)/jobs", "connectionString asks for a network other than tcp"),
            ("u:p@db:3306/jobs", form),
            ("nonsense", form),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
    }
}
