//! Virtual hosts and routes.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use meshfed_proxy_config::{HeaderMatch, PathMatch, Route, RouteTable, VirtualHost};

use crate::shards::Shards;

/// Matches every authority.
const ANY: &str = "*";

/// Why a route table makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error(
        "virtual hosts {first:?} and {second:?} of table {table:?} both have the domain {domain:?}"
    )]
    SameDomain {
        table: String,
        first: String,
        second: String,
        domain: String,
    },
    #[error("a virtual host that comes alone is named <table>/<host>")]
    NoTable,
}

/// Which virtual host of a table has a domain.
pub(crate) enum RouteIndex {
    /// Of a table that came whole.
    Whole(HashMap<String, Arc<VirtualHost>>),
    /// Of one whose virtual hosts come and go one by one.
    Separate(Arc<Shards<VirtualHost>>),
}

impl RouteIndex {
    pub(crate) fn new(table: Arc<RouteTable>) -> Result<Self, RouteError> {
        let mut by_domain: HashMap<String, Arc<VirtualHost>> = HashMap::new();
        for host in table.hosts.values() {
            for domain in &host.domains {
                let domain = domain.to_ascii_lowercase();
                if let Some(first) = by_domain.insert(domain.clone(), host.clone())
                    && first.name != host.name
                {
                    return Err(RouteError::SameDomain {
                        table: table.name.clone(),
                        first: first.name.to_string(),
                        second: host.name.to_string(),
                        domain,
                    });
                }
            }
        }
        Ok(Self::Whole(by_domain))
    }

    fn by_domain(&self, domain: &str) -> Option<Arc<VirtualHost>> {
        match self {
            Self::Whole(by_domain) => by_domain.get(domain).cloned(),
            Self::Separate(by_domain) => by_domain.get(domain),
        }
    }

    /// The virtual host of an authority.
    pub(crate) fn host(&self, authority: &str) -> Option<Arc<VirtualHost>> {
        let found = if authority.bytes().any(|b| b.is_ascii_uppercase()) {
            self.by_domain(&authority.to_ascii_lowercase())
        } else {
            self.by_domain(authority)
        };
        found.or_else(|| self.by_domain(ANY))
    }
}

/// The first route of a virtual host that matches.
pub(crate) fn route_of<'h>(
    host: &'h VirtualHost,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<&'h Route> {
    host.routes.iter().find(|route| {
        let path = match &route.path {
            PathMatch::Connect => method == Method::CONNECT,
            _ if method == Method::CONNECT => false,
            PathMatch::Exact(exact) => path == exact,
            PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
        };
        path && route.headers.iter().all(|m| header_matches(m, headers))
    })
}

fn header_matches(wanted: &HeaderMatch, headers: &HeaderMap) -> bool {
    let (HeaderMatch::Exact { name, .. } | HeaderMatch::Suffix { name, .. }) = wanted;
    let mut values = headers.get_all(name.as_str()).iter();
    let Some(first) = values.next() else {
        return false;
    };
    let test = |value: &[u8]| match wanted {
        HeaderMatch::Exact { value: wanted, .. } => value == wanted.as_bytes(),
        HeaderMatch::Suffix { value: wanted, .. } => value.ends_with(wanted.as_bytes()),
    };
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return test(first.as_bytes());
    }
    // Several fields of one name are one list.
    let mut list = first.as_bytes().to_vec();
    for value in rest {
        list.push(b',');
        list.extend_from_slice(value.as_bytes());
    }
    test(&list)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use meshfed_proxy_config::RouteAction;

    use super::*;

    fn route(name: &str, path: PathMatch, headers: Vec<HeaderMatch>) -> Route {
        Route {
            name: name.into(),
            path,
            headers,
            action: RouteAction::Respond {
                status: 200,
                body: String::new(),
            },
        }
    }

    fn host(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
        VirtualHost {
            name: name.into(),
            domains: domains.iter().map(|d| (*d).into()).collect(),
            routes,
        }
    }

    fn table(hosts: Vec<VirtualHost>) -> Arc<RouteTable> {
        Arc::new(RouteTable::new("t", hosts))
    }

    fn find(
        index: &RouteIndex,
        method: &Method,
        authority: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<String> {
        let host = index.host(authority)?;
        route_of(&host, method, path, headers).map(|route| route.name.clone())
    }

    #[test]
    fn the_authority_chooses_the_host_and_the_first_matching_route_wins() {
        let index = RouteIndex::new(table(vec![
            host(
                "ratings",
                &["ratings.bookinfo", "ratings.bookinfo:9080"],
                vec![
                    route("exact", PathMatch::Exact("/ratings/0".into()), vec![]),
                    route("prefix", PathMatch::Prefix("/ratings/".into()), vec![]),
                ],
            ),
            host(
                "any",
                &["*"],
                vec![route("connect", PathMatch::Connect, vec![])],
            ),
        ]))
        .unwrap();
        let none = HeaderMap::new();
        let get = |a: &str, p: &str| find(&index, &Method::GET, a, p, &none);
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(get("Ratings.Bookinfo:9080", "/ratings/0"), named("exact"));
        assert_eq!(get("ratings.bookinfo", "/ratings/01"), named("prefix"));
        assert_eq!(get("ratings.bookinfo", "/other"), None);
        assert_eq!(get("ratings.bookinfo:80", "/ratings/0"), None);
        let connect = |a| find(&index, &Method::CONNECT, a, "", &none);
        assert_eq!(connect("elsewhere:443"), named("connect"));
        assert_eq!(connect("ratings.bookinfo"), None);
    }

    #[test]
    fn a_header_matches_as_the_list_of_all_its_fields() {
        let suffix = HeaderMatch::Suffix {
            name: "x-id".into(),
            value: ";URI=spiffe://a/ns/b/sa/c".into(),
        };
        let index = RouteIndex::new(table(vec![host(
            "h",
            &["*"],
            vec![route("r", PathMatch::Prefix("/".into()), vec![suffix])],
        )]))
        .unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(find(&index, &Method::GET, "", "/", &headers), None);
        headers.append(
            "x-id",
            HeaderValue::from_static("By=x;URI=spiffe://a/ns/b/sa/c"),
        );
        assert_eq!(
            find(&index, &Method::GET, "", "/", &headers),
            Some("r".to_owned())
        );
        headers.append("x-id", HeaderValue::from_static("other"));
        assert_eq!(find(&index, &Method::GET, "", "/", &headers), None);
    }

    #[test]
    fn two_hosts_with_one_domain_are_refused() {
        let wrong = table(vec![
            host("a", &["x", "X"], vec![]),
            host("b", &["X"], vec![]),
        ]);
        assert!(matches!(
            RouteIndex::new(wrong),
            Err(RouteError::SameDomain { domain, .. }) if domain == "x"
        ));
    }
}
