//! Paths.

use crate::{error::ApiError, names};

use super::query::decode;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, `/livez`, `/readyz`, with what may follow.
    Health,
    Version,
    /// The legacy discovery of the core group.
    Api,
    /// The groups.
    Apis,
    Group(String),
    /// The resources of a group's version.
    Resources {
        group: String,
        version: String,
    },
    OpenApiV2,
    OpenApiV3,
    /// The document of `api/v1` or `apis/<group>/<version>`.
    OpenApiV3Document {
        group: String,
        version: String,
    },
    Resource(ResourcePath),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    /// Empty: none, or all.
    pub namespace: String,
    pub plural: String,
    pub name: String,
    pub subresource: String,
}

/// Reads a path.
pub fn route(path: &str) -> Result<Route, ApiError> {
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        let segment = decode_segment(segment).ok_or_else(|| {
            ApiError::bad_request("the path is not made of percent-encoded names")
        })?;
        if segments.len() == 12 {
            return Err(ApiError::no_such_path());
        }
        segments.push(segment);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(Route::Health),
        ["version"] => Ok(Route::Version),
        ["api"] => Ok(Route::Api),
        ["apis"] => Ok(Route::Apis),
        ["apis", group] => Ok(Route::Group((*group).to_owned())),
        ["openapi", "v2"] => Ok(Route::OpenApiV2),
        ["openapi", "v3"] => Ok(Route::OpenApiV3),
        ["openapi", "v3", "api", version] => Ok(Route::OpenApiV3Document {
            group: String::new(),
            version: (*version).to_owned(),
        }),
        ["openapi", "v3", "apis", group, version] => Ok(Route::OpenApiV3Document {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
        }),
        ["api", version] => Ok(resources("", version)),
        ["apis", group, version] => Ok(resources(group, version)),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Err(ApiError::no_such_path()),
    }
}

/// Names may be percent-encoded; a name that would be more than one segment may not.
fn decode_segment(segment: &str) -> Option<String> {
    // A plus is a plus in paths.
    let segment = segment.replace('+', "%2B");
    let decoded = decode(&segment)?.into_owned();
    names::is_path_segment(&decoded).then_some(decoded)
}

fn resources(group: &str, version: &str) -> Route {
    Route::Resources {
        group: group.to_owned(),
        version: version.to_owned(),
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Result<Route, ApiError> {
    let mut path = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let own = |text: &&str| (*text).to_owned();
    let rest = match rest {
        // A namespace itself, its parts, or what is in it.
        ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => rest,
        ["namespaces", namespace, rest @ ..] => {
            path.namespace = own(namespace);
            rest
        }
        _ => rest,
    };
    match rest {
        [plural] => path.plural = own(plural),
        [plural, name] => (path.plural, path.name) = (own(plural), own(name)),
        [plural, name, subresource] => {
            (path.plural, path.name) = (own(plural), own(name));
            path.subresource = own(subresource);
        }
        _ => return Err(ApiError::no_such_path()),
    }
    Ok(Route::Resource(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource_of(path: &str) -> [String; 6] {
        match route(path) {
            Ok(Route::Resource(p)) => [
                p.group,
                p.version,
                p.namespace,
                p.plural,
                p.name,
                p.subresource,
            ],
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_resources() {
        for (path, expected) in [
            ("/api/v1/namespaces", ["", "v1", "", "namespaces", "", ""]),
            (
                "/api/v1/namespaces/a",
                ["", "v1", "", "namespaces", "a", ""],
            ),
            (
                "/api/v1/namespaces/a/status",
                ["", "v1", "", "namespaces", "a", "status"],
            ),
            ("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]),
            (
                "/api/v1/namespaces/a/pods/b",
                ["", "v1", "a", "pods", "b", ""],
            ),
            ("/api/v1/pods", ["", "v1", "", "pods", "", ""]),
            (
                "/apis/g.io/v2/namespaces/a/xs/b/status",
                ["g.io", "v2", "a", "xs", "b", "status"],
            ),
            (
                "/apis/g.io/v2/xs/a%2Db",
                ["g.io", "v2", "", "xs", "a-b", ""],
            ),
        ] {
            assert_eq!(resource_of(path), expected.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn odd_paths_are_refused() {
        for path in [
            "/nothing",
            "/api/v1/namespaces/a/b/c/d/e",
            "/api/v1/namespaces/a%2Fb/pods",
            "/api/v1/namespaces/../pods",
            "/api/v1/pods/%ff",
        ] {
            assert!(route(path).is_err(), "{path}");
        }
    }
}
