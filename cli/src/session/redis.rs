//! URLs of Redis stores on one server, on a cluster and behind sentinels: [`builder`].

use nevertwice::RedisStore;
use nevertwice::backends::redis::RedisStoreBuilder;
use percent_encoding::percent_decode_str;

use crate::failure::Failure;

/// The port of a sentinel whose URL names none.
const SENTINEL_PORT: u16 = 26_379;
/// The characters that end the part of a URL which holds the login and hosts.
const ENDS: [char; 3] = ['/', '?', '#'];

/// Starts to set up the store that a URL names:
///
/// * `redis://`, `rediss://` and `redis+unix://`, as the library reads them;
/// * `redis+cluster://[user:password@]host[:port][,host[:port]..]`, the addresses of some nodes;
/// * `redis+sentinel://[user:password@]host[:port][,host[:port]..]/service[/database]`, the
///   addresses of sentinels and the login of the servers. `?sentinel_user=` and
///   `&sentinel_password=` are the login of the sentinels.
///
/// `rediss+cluster://` and `rediss+sentinel://` use TLS.
///
/// # Errors
/// [`Failure::Usage`] with the form that is expected. It shows nothing of the URL.
pub(super) fn builder(scheme: &str, url: &str) -> Result<RedisStoreBuilder, Failure> {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let kind = scheme.split_once('+');
    if kind.is_none_or(|(_, kind)| kind != "unix") && ends_in_login(rest) {
        return Err(Failure::Usage(
            "the store's user or password has a character that ends it: percent-encode / ? # and @"
                .to_owned(),
        ));
    }
    match kind {
        Some((plain, "cluster")) => cluster(plain, rest),
        Some((plain, "sentinel")) => sentinel(plain, rest),
        _ => Ok(RedisStore::builder(url)),
    }
}

/// Returns true if the part of a URL that holds the login and hosts ends before its last `@`: the
/// user would be taken for a host, and the start of the password for its port.
fn ends_in_login(rest: &str) -> bool {
    rest.find(ENDS).is_some_and(|end| rest[end..].contains('@'))
}

fn cluster(scheme: &str, rest: &str) -> Result<RedisStoreBuilder, Failure> {
    let usage = || usage("redis+cluster://HOST:PORT,HOST:PORT, with some nodes of the cluster");
    let (login, hosts) = authority(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(usage)?;
    let login = login.map_or_else(String::new, |login| format!("{login}@"));
    Ok(RedisStore::cluster(hosts.iter().map(|host| format!("{scheme}://{login}{host}"))))
}

fn sentinel(scheme: &str, rest: &str) -> Result<RedisStoreBuilder, Failure> {
    let usage = || {
        usage(
            "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE, with the sentinels and no other options \
             than sentinel_user and sentinel_password",
        )
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (rest, path) = rest.split_once('/').ok_or_else(usage)?;
    let (login, hosts) = authority(rest).ok_or_else(usage)?;
    let (service, database) = path.split_once('/').unwrap_or((path, ""));
    let service = decoded(service).filter(|service| !service.is_empty()).ok_or_else(usage)?;
    let own = sentinel_login(query).ok_or_else(usage)?;
    let sentinel = |host: &&str| {
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let port = if has_port { String::new() } else { format!(":{SENTINEL_PORT}") };
        format!("{scheme}://{own}{host}{port}")
    };
    let mut builder = RedisStore::sentinel(hosts.iter().map(sentinel), &service);
    if let Some(login) = login {
        let (name, password) = login.split_once(':').ok_or_else(usage)?;
        builder = builder.login(decoded(name).ok_or_else(usage)?, decoded(password).ok_or_else(usage)?);
    }
    if !database.is_empty() {
        builder = builder.database(database.parse().map_err(|_| usage())?);
    }
    Ok(builder)
}

/// Splits `login@host,host`.
fn authority(text: &str) -> Option<(Option<&str>, Vec<&str>)> {
    let (login, hosts) = match text.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, text),
    };
    let hosts: Vec<_> = hosts.split(',').collect();
    let is_host = |host: &&str| !host.is_empty() && !host.contains(ENDS);
    hosts.iter().all(is_host).then_some((login, hosts))
}

/// Reads the login of the sentinels from the query, still encoded as in a URL.
fn sentinel_login(query: &str) -> Option<String> {
    let (mut user, mut password) = ("", "");
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            // It would end the login in the URL of each sentinel.
            (_, value) if value.contains(ENDS) => return None,
            ("sentinel_user", value) => user = value,
            ("sentinel_password", value) => password = value,
            _ => return None,
        }
    }
    Some(if user.is_empty() && password.is_empty() { String::new() } else { format!("{user}:{password}@") })
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

/// The texts show no login and no value, which would be taken for real ones and hidden.
fn usage(form: &str) -> Failure {
    Failure::Usage(format!("the store is not of the form {form} (a login stands before the first host)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_is_not_escaped_is_refused_and_not_repeated() {
        for url in [
            "redis://u:6379#s3cret@h",
            "rediss://u:6379?s3cret@h",
            "redis://s3cret/x@h/0",
            "redis+cluster://u:6379#s3cret@h",
            "redis+cluster://u:6379?s3cret@h,i:6379",
            "redis+cluster://s3cret/x@h",
            "redis+sentinel://u:6379#s3cret@h/service",
            "redis+sentinel://u:6379/s3cret@h",
            "redis+sentinel://u:6379?s3cret@h/service",
            "redis+sentinel://h/service?sentinel_user=u&sentinel_password=6379#s3cret",
            "redis+sentinel://h/service?sentinel_user=u&sentinel_password=6379/s3cret",
            "redis+sentinel://h/service?sentinel_user=u&sentinel_password=6379?s3cret",
            "redis+sentinel://h/service?sentinel_user=6379#s3cret&sentinel_password=p",
        ] {
            let scheme = url.split_once(':').unwrap().0;
            let Err(Failure::Usage(text)) = builder(scheme, url) else { panic!("{url} is accepted") };
            assert!(!text.contains("s3cret") && !text.contains("6379"), "{text}");
        }
        for url in [
            "redis://u:p%23w@h:1/2",
            "redis+unix:///run/a@b.sock?user=u&pass=p",
            "redis+cluster://u:p%40w@h,i:1/",
            "redis+sentinel://u:p%2Fw@h,i:1/service/2?sentinel_user=u&sentinel_password=p%3Fw",
        ] {
            let scheme = url.split_once(':').unwrap().0;
            assert!(builder(scheme, url).is_ok(), "{url}");
        }
    }
}
