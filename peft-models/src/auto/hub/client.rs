//! Requests to a hub: redirects followed by hand, time-outs, and a limit for what is read at once.

use std::io::Read;
use std::thread;
use std::time::Duration;

use peft_core::printable;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, USER_AGENT};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body, Error, Timeout};

use super::address::{Origin, escaped, redirected};
use super::failure::{Failure, shown};
use super::name::RepoName;
use super::settings::Hub;

/// Attempts after a request or a transfer that came to nothing.
pub(super) const RETRIES: usize = 3;

/// As many as a redirect may lead to another.
const MAX_REDIRECTS: usize = 10;

/// As much as the description of a repository may hold. Those of the largest ones take a few megabytes.
const MAX_DESCRIPTION: u64 = 64 << 20;

/// A description must be there within this many times the span in which a server may be silent.
const DESCRIPTION_TIMEOUTS: u32 = 12;

/// A connection to the hub that a user chose.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    home: Origin,
    agent: Agent,
}

/// What is asked for.
enum Ask {
    /// The headers alone.
    Head,
    /// A file, from a place on if one is given.
    File(Option<u64>),
    /// The description of a repository.
    Description,
}

/// An answer, and where it came from in the end.
pub(super) struct Answer {
    pub response: Response<Body>,
    is_home: bool,
}

impl Answer {
    /// The status, if it is not one of success.
    pub(super) fn refused(&self) -> Option<u16> {
        let status = self.response.status();
        (!status.is_success() && !self.redirects()).then(|| status.as_u16())
    }

    /// The value of a header, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(self.response.headers(), name)
    }

    /// A header that holds a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// Whether it says that something lies elsewhere.
    pub(super) fn redirects(&self) -> bool {
        matches!(self.response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Result<Self, Failure> {
        let endpoint = shown(&hub.endpoint).to_string();
        let wrong = |reason: &str| Failure::Settings(format!("HF_ENDPOINT is `{endpoint}`: {reason}"));
        let uri: Uri = hub.endpoint.parse().map_err(|_| wrong("it is no address"))?;
        let home = Origin::of(&uri).map_err(|reason| wrong(&reason))?;
        if hub.token.as_ref().is_some_and(|it| !it.bytes().all(|it| it.is_ascii_graphic())) {
            return Err(Failure::Settings(
                "HF_TOKEN, or the file with the token, holds characters that no token has".to_owned(),
            ));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // By hand: ureq cannot tell which of them may have the token.
            .max_redirects(0)
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_send_request(Some(hub.timeout))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .timeout_per_write(Some(hub.timeout))
            .build();
        Ok(Self { hub, home, agent: config.into() })
    }

    /// How long the server may be silent.
    pub(super) fn timeout(&self) -> Duration {
        self.hub.timeout
    }

    /// The address of a file.
    pub(super) fn file(&self, id: &str, revision: &str, file: &str) -> String {
        let file = file.split('/').map(escaped).collect::<Vec<_>>().join("/");
        format!("{}/{id}/resolve/{}/{file}", self.hub.endpoint, escaped(revision))
    }

    /// The address of the description of a repository: its commit, and its files with their sizes.
    fn description(&self, repo: &RepoName<'_>, revision: &str) -> String {
        format!("{}/api/models/{}/revision/{}?blobs=true", self.hub.endpoint, repo.id, escaped(revision))
    }

    /// What the server says of a file. A redirect to another server is followed only if this one says nothing.
    pub(super) fn head(&self, address: &str) -> Result<Answer, Failure> {
        self.follow(address, &Ask::Head, |it| it.header("x-repo-commit").is_some())
    }

    /// A file, from a place on if one is given.
    pub(super) fn get(&self, address: &str, from: Option<u64>) -> Result<Answer, Failure> {
        self.follow(address, &Ask::File(from), |_| false)
    }

    /// What the server says of a repository, as text.
    pub(super) fn describe(&self, repo: &RepoName<'_>, revision: &str) -> Result<String, Failure> {
        let address = self.description(repo, revision);
        let answer = self.asked_again(|| self.follow(&address, &Ask::Description, |_| false))?;
        if let Some(status) = answer.refused() {
            return Err(Failure::Status(status));
        }
        let mut text = String::new();
        let body = answer.response.into_body().into_with_config().limit(u64::MAX).reader();
        match body.take(MAX_DESCRIPTION + 1).read_to_string(&mut text) {
            Ok(_) if text.len() as u64 > MAX_DESCRIPTION => {
                Err(Failure::NotAHub(format!("its description of a repository is over {MAX_DESCRIPTION} bytes long")))
            }
            Ok(_) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(Failure::NotAHub("its description of a repository is no text".to_owned()))
            }
            Err(error) => Err(broken(&error, self.hub)),
        }
    }

    /// Asks a server again that is overloaded or has a fault: the next answer may be another. One that does not answer at all
    /// has had its time.
    pub(super) fn asked_again(&self, ask: impl Fn() -> Result<Answer, Failure>) -> Result<Answer, Failure> {
        for attempt in 0..RETRIES {
            let answer = ask()?;
            match answer.refused() {
                Some(status) if Failure::Status(status).may_pass() => {
                    tracing::debug!("status {status}; trying again");
                    thread::sleep(self.pause(attempt as u32));
                }
                _ => return Ok(answer),
            }
        }
        ask()
    }

    /// The pause after an attempt: a quarter of a second with the usual patience, and more with each.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        self.timeout() / 40 * (1 << attempt)
    }

    /// Sends a request, and follows redirects until there is an answer. One from another server that is a redirect itself
    /// ends the way if `is_enough`.
    fn follow(&self, address: &str, ask: &Ask, is_enough: impl Fn(&Answer) -> bool) -> Result<Answer, Failure> {
        let mut at: Uri =
            address.parse().map_err(|_| Failure::Settings(format!("`{}` is no address", shown(address))))?;
        for _ in 0..=MAX_REDIRECTS {
            let is_home = Origin::of(&at).map_err(Failure::NotAHub)? == self.home;
            let answer = Answer { response: self.send(&at, ask, is_home)?, is_home };
            if !answer.redirects() {
                return Ok(answer);
            }
            let location = answer.header(LOCATION.as_str());
            let Some(location) = location else {
                return Err(Failure::NotAHub("it redirects without saying where to".to_owned()));
            };
            let to = redirected(&at, location).map_err(Failure::NotAHub)?;
            let stays = Origin::of(&to).map_err(Failure::NotAHub)? == self.home;
            if answer.is_home && !stays && is_enough(&answer) {
                return Ok(answer);
            }
            at = to;
        }
        Err(Failure::NotAHub(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    fn send(&self, at: &Uri, ask: &Ask, is_home: bool) -> Result<Response<Body>, Failure> {
        let mut request = match ask {
            Ask::Head => self.agent.head(at),
            Ask::File(_) | Ask::Description => self.agent.get(at),
        };
        request = request
            .header(USER_AGENT, concat!("peft-rs/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges are those of the file itself.
            .header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.hub.token.as_ref().filter(|_| is_home) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        match ask {
            Ask::File(Some(from)) => request = request.header(RANGE, format!("bytes={from}-")),
            Ask::Description => {
                let all = self.hub.timeout.saturating_mul(DESCRIPTION_TIMEOUTS);
                request = request.config().timeout_global(Some(all)).build();
            }
            Ask::Head | Ask::File(None) => {}
        }
        request.call().map_err(|error| match error {
            Error::Protocol(_) | Error::LargeResponseHeader(..) | Error::BodyStalled => {
                Failure::NotAHub(printable(&error.to_string()))
            }
            Error::Http(_) | Error::BadUri(_) => Failure::Settings(printable(&error.to_string())),
            error => broken(&error.into_io(), self.hub),
        })
    }
}

/// A connection that failed, or broke off while something was read.
pub(super) fn broken(error: &std::io::Error, hub: &Hub) -> Failure {
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    Failure::Connection(match inner {
        Some(Error::Timeout(Timeout::Global)) => "the server takes too long".to_owned(),
        Some(Error::Timeout(_)) => format!("the server is silent for {} s", hub.timeout.as_secs_f64()),
        _ if error.kind() == std::io::ErrorKind::TimedOut => {
            format!("the server is silent for {} s", hub.timeout.as_secs_f64())
        }
        _ => printable(&error.to_string()),
    })
}
