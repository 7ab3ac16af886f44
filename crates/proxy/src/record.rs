//! One line in the access log per connection or request, and its counts, however it ends.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use meshfed_pki::SpiffeId;
use meshfed_runtime::AccessLog;

use crate::cut::Control;
use crate::end::End;
use crate::io::Traffic;
use crate::metrics::ListenerMetrics;

/// Longest text from a client that goes into a line, in characters.
const MAX_FOREIGN_TEXT: usize = 256;

/// Where lines and counts of a listener go.
pub(crate) struct Reporter {
    pub(crate) listener: Arc<str>,
    pub(crate) log: AccessLog,
    pub(crate) metrics: ListenerMetrics,
}

/// Who is connected and how: what every request of a connection shares.
#[derive(Clone)]
pub(crate) struct Seed {
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) client: SocketAddr,
    pub(crate) chain: Option<Arc<str>>,
    pub(crate) sni: Option<Arc<str>>,
    pub(crate) peer: Option<SpiffeId>,
    /// Who the client said it is, where that was not accepted.
    pub(crate) claimed: Option<SpiffeId>,
    pub(crate) tls: Option<&'static str>,
}

/// What is known so far of a connection or request. Written when it is dropped, so that none can
/// end without its line.
pub(crate) struct Record {
    pub(crate) seed: Seed,
    began: SystemTime,
    clock: Instant,
    pub(crate) policy: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) upstream_peer: Option<SpiffeId>,
    pub(crate) request: Option<RequestLine>,
    pub(crate) traffic: Arc<Traffic>,
    /// What may cut it; tells why if it was dropped in the middle.
    pub(crate) control: Option<Arc<Control>>,
    end: Option<End>,
    quiet: bool,
}

/// The HTTP part of a record.
pub(crate) struct RequestLine {
    pub(crate) method: http::Method,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) status: Option<u16>,
}

impl Record {
    pub(crate) fn new(reporter: Arc<Reporter>, client: SocketAddr) -> Self {
        Self::of(Seed {
            reporter,
            client,
            chain: None,
            sni: None,
            peer: None,
            claimed: None,
            tls: None,
        })
    }

    /// The record of one more thing that this client does.
    pub(crate) fn of(seed: Seed) -> Self {
        Self {
            seed,
            began: SystemTime::now(),
            clock: Instant::now(),
            policy: None,
            route: None,
            cluster: None,
            upstream: None,
            upstream_peer: None,
            request: None,
            traffic: Arc::default(),
            control: None,
            end: None,
            quiet: false,
        }
    }

    pub(crate) fn finish(mut self, end: End) {
        self.end = Some(end);
    }

    /// Without an end of its own it was dropped: cut, or given up by its client.
    fn end(&self) -> End {
        let cut = || self.control.as_ref()?.cut_reason().map(End::from);
        self.end.or_else(cut).unwrap_or(End::DownstreamReset)
    }

    /// Writes no line: the requests of this connection have written theirs.
    pub(crate) fn forget(mut self) {
        self.quiet = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.quiet {
            return;
        }
        let (received, sent) = (self.traffic.received(), self.traffic.sent());
        self.seed.reporter.metrics.ended(self.end(), received, sent);
        if let Some(status) = self.request.as_ref().and_then(|r| r.status) {
            self.seed.reporter.metrics.answered(status);
        }
        self.seed.reporter.log.line(self.to_string());
    }
}

/// `key=value` pairs; values with spaces, quotes or control characters are quoted and escaped.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "time={}", Rfc3339(self.began))?;
        pair(f, "listener", Some(&*self.seed.reporter.listener))?;
        write!(f, " client={}", self.seed.client)?;
        pair(f, "chain", self.seed.chain.as_deref())?;
        pair(f, "sni", self.seed.sni.as_deref())?;
        pair(f, "peer", self.seed.peer.as_ref().map(SpiffeId::as_str))?;
        if let Some(claimed) = &self.seed.claimed {
            pair(f, "claimed", Some(claimed.as_str()))?;
        }
        pair(f, "tls", self.seed.tls)?;
        pair(f, "policy", self.policy.as_deref())?;
        if let Some(request) = &self.request {
            pair(f, "method", Some(request.method.as_str()))?;
            pair(f, "authority", Some(&request.authority))?;
            pair(f, "path", Some(&request.path))?;
            match request.status {
                Some(status) => write!(f, " status={status}")?,
                None => f.write_str(" status=-")?,
            }
            pair(f, "flags", Some(self.end().flag()))?;
            pair(f, "route", self.route.as_deref())?;
        }
        pair(f, "cluster", self.cluster.as_deref())?;
        match self.upstream {
            Some(upstream) => write!(f, " upstream={upstream}")?,
            None => f.write_str(" upstream=-")?,
        }
        pair(
            f,
            "upstream_peer",
            self.upstream_peer.as_ref().map(SpiffeId::as_str),
        )?;
        write!(
            f,
            " received={} sent={} ms={}",
            self.traffic.received(),
            self.traffic.sent(),
            self.clock.elapsed().as_millis()
        )?;
        pair(f, "end", Some(&self.end().text()))
    }
}

fn pair(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&str>) -> fmt::Result {
    let value = value.unwrap_or("-");
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    write!(f, " {key}=")?;
    let whole = value.len() <= MAX_FOREIGN_TEXT;
    if whole && !value.is_empty() && value.chars().all(plain) {
        return f.write_str(value);
    }
    f.write_char('"')?;
    for c in value.chars().take(MAX_FOREIGN_TEXT) {
        match c {
            ' ' => f.write_char(c)?,
            c if plain(c) => f.write_char(c)?,
            c => write!(f, "{}", c.escape_default())?,
        }
    }
    if !whole {
        f.write_str("...")?;
    }
    f.write_char('"')
}

/// A time in UTC with milliseconds, as in RFC 3339.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self
            .0
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            since.subsec_millis()
        )
    }
}

/// Days since 1970-01-01 to year, month and day of the Gregorian calendar. Counts in years that
/// begin in March, so that the leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let at = |s: u64, ms: u64| {
            Rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(s * 1000 + ms))
        };
        assert_eq!(at(0, 0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 5).to_string(), "2000-02-28T23:59:59.005Z");
        assert_eq!(at(951_782_400, 0).to_string(), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_795_248_000, 0).to_string(), "2026-11-21T08:00:00.000Z");
    }

    #[test]
    fn a_clients_text_cannot_break_a_line_or_fill_it() {
        struct Pair<'a>(&'a str);
        impl fmt::Display for Pair<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                pair(f, "path", Some(self.0))
            }
        }
        assert_eq!(Pair("/a?b=c").to_string(), " path=/a?b=c");
        assert_eq!(
            Pair("/a\nend=\"ok\"").to_string(),
            " path=\"/a\\nend=\\\"ok\\\"\""
        );
        assert_eq!(Pair("").to_string(), " path=\"\"");
        assert!(Pair(&"x".repeat(100_000)).to_string().len() < 300);
    }
}
