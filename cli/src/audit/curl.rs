//! Reading a line of curl.

use std::ffi::OsString;

use clap::Parser;

use super::Problem;

/// The options of curl that describe a request. Others are refused, except those that only change
/// what curl prints.
#[derive(Debug, Parser)]
#[command(name = "curl", disable_help_flag = true, disable_version_flag = true, args_override_self = true)]
pub(super) struct Curl {
    url: Vec<String>,
    #[arg(long = "url")]
    more: Vec<String>,
    #[arg(short = 'X', long)]
    pub(super) request: Option<String>,
    #[arg(short = 'H', long)]
    pub(super) header: Vec<String>,
    #[arg(short = 'd', long, visible_alias = "data-ascii", allow_hyphen_values = true)]
    data: Vec<String>,
    #[arg(long, allow_hyphen_values = true)]
    data_raw: Vec<String>,
    #[arg(long, allow_hyphen_values = true)]
    data_binary: Vec<String>,
    #[arg(long, allow_hyphen_values = true)]
    data_urlencode: Vec<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub(super) json: Vec<String>,
    #[arg(short, long)]
    pub(super) user: Option<String>,
    #[arg(short = 'A', long)]
    user_agent: Option<String>,
    #[arg(short = 'b', long)]
    cookie: Vec<String>,
    #[arg(short = 'e', long)]
    referer: Option<String>,
    #[arg(long)]
    oauth2_bearer: Option<String>,
    #[command(flatten)]
    ignored: Ignored,
}

/// Options that do not change the request.
#[derive(Debug, clap::Args)]
struct Ignored {
    #[arg(short, long)]
    silent: bool,
    #[arg(short = 'S', long)]
    show_error: bool,
    #[arg(short, long, visible_alias = "show-headers")]
    include: bool,
    #[arg(short, long)]
    verbose: bool,
    #[arg(short, long, visible_alias = "fail-with-body")]
    fail: bool,
    #[arg(short = 'L', long)]
    location: bool,
    #[arg(short = 'g', long)]
    globoff: bool,
    #[arg(short = 'N', long)]
    no_buffer: bool,
    #[arg(long)]
    compressed: bool,
    #[arg(long, visible_alias = "http2", visible_alias = "http2-prior-knowledge")]
    http1_1: bool,
    #[arg(short, long)]
    output: Option<String>,
    #[arg(short, long)]
    write_out: Option<String>,
    #[arg(short, long)]
    max_time: Option<String>,
    #[arg(long)]
    connect_timeout: Option<String>,
    #[arg(long)]
    retry: Option<String>,
}

impl Curl {
    /// Reads the line as a shell would.
    pub(super) fn parse_line(line: &str) -> Result<Curl, Problem> {
        let words =
            shell_words::split(line.trim()).map_err(|_| Problem::usage("--curl: a quote is not closed"))?;
        if words.first().map(String::as_str) != Some("curl") {
            return Err(Problem::usage("--curl takes a whole line that begins with curl"));
        }
        if let Some(word) = words.iter().find(|word| word.starts_with('$')) {
            let start: String = word.chars().take(12).collect();
            return Err(Problem::usage(format!(
                "--curl: {start}.. is not expanded; write $'..' as '..' and variables as their values"
            )));
        }
        Curl::try_parse_from(words.into_iter().map(OsString::from)).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Problem::usage(format!("--curl: {first}: only options that describe a request are understood"))
        })
    }

    /// The address; there must be one.
    pub(super) fn address(&self) -> Result<&str, Problem> {
        match (&*self.url, &*self.more) {
            ([url], []) | ([], [url]) => Ok(url),
            _ => Err(Problem::usage("--curl: the line must name one URL")),
        }
    }

    /// The headers, also those that other options stand for.
    pub(super) fn headers(&self) -> Vec<String> {
        let mut headers = self.header.clone();
        let mut named = |name: &str, value: &str| headers.push(format!("{name}: {value}"));
        if let Some(agent) = &self.user_agent {
            named("User-Agent", agent);
        }
        if let Some(referer) = &self.referer {
            named("Referer", referer);
        }
        if let Some(token) = &self.oauth2_bearer {
            named("Authorization", &format!("Bearer {token}"));
        }
        for cookie in &self.cookie {
            named("Cookie", cookie);
        }
        headers
    }

    /// The pieces of a form or of other data, each as it is or as `@FILE`; curl joins them by `&`.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, Problem> {
        let as_is = |raw: &String| Piece::Text(raw.clone());
        let or_file = |data: &String| match data.strip_prefix('@') {
            Some(path) => Piece::File(path.to_owned()),
            None => Piece::Text(data.clone()),
        };
        let mut pieces: Vec<_> = self.data.iter().map(or_file).collect();
        pieces.extend(self.data_raw.iter().map(as_is));
        pieces.extend(self.data_binary.iter().map(or_file));
        for field in &self.data_urlencode {
            let Some((name, value)) = field.split_once('=') else {
                return Err(Problem::usage("--curl: --data-urlencode is understood as name=value only"));
            };
            let value: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            pieces.push(Piece::Text(if name.is_empty() { value } else { format!("{name}={value}") }));
        }
        Ok(pieces)
    }
}

/// A piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    Text(String),
    File(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_line_is_read_as_a_shell_reads_it() {
        let line = "curl -sSi -XPOST 'http://localhost:3000/v1' \\\n  -H 'Authorization: Bearer x' --compressed -d amount=1 -d 'note=a b'";
        let curl = Curl::parse_line(line).unwrap();
        assert_eq!(curl.address().unwrap(), "http://localhost:3000/v1");
        assert_eq!(curl.request.as_deref(), Some("POST"));
        assert_eq!(curl.headers(), ["Authorization: Bearer x"]);
        assert_eq!(curl.pieces().unwrap().len(), 2);
    }

    #[test]
    fn a_line_that_is_not_understood_is_refused() {
        for line in [
            "wget http://localhost",
            "curl 'http://localhost",
            "curl http://localhost -F file=@x",
            "curl http://localhost -H $'a: b'",
            "curl -H \"$TOKEN\" http://localhost",
            "",
        ] {
            assert!(Curl::parse_line(line).is_err(), "{line}");
        }
        assert!(Curl::parse_line("curl -s").unwrap().address().is_err());
        assert!(Curl::parse_line("curl http://a http://b").unwrap().address().is_err());
    }
}
