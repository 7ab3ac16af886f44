//! Requests for resources.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Body as HttpBody;
use serde_json::{Value, json};

use super::{
    LARGEST_BODY, ResponseBody, Shape, accept, attributes, json_response, media_type, parse, query,
    query::Query, read, review, route::ResourcePath, success, warn,
};
use crate::{
    api::{Api, Target, rfc3339},
    auth::Caller,
    error::{ApiError, FieldError, Subject},
    json,
    store::{Author, Stored, format_uid},
    token::{DEFAULT_LIFE, LONGEST_LIFE, SHORTEST_LIFE, ServiceAccountRef},
    verbs::{self, Body, DeleteOptions, Deleted, Part, Patch, WriteOptions, Written},
    watch::{Start, Watch, WatchOptions},
};

pub struct Request<'a> {
    pub api: &'a Arc<Api>,
    pub caller: &'a Caller,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub query: &'a Query<'a>,
}

/// Questions about oneself are short, and callers without rights may ask them.
const LARGEST_REVIEW: usize = 64 * 1024;

type Answer = Result<Response<ResponseBody>, ApiError>;

impl Request<'_> {
    pub async fn answer<B>(&self, path: ResourcePath, body: B) -> Answer
    where
        B: HttpBody<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let watches = self.query.flag("watch");
        let collection = path.name.is_empty();
        let verb = match *self.method {
            Method::GET | Method::HEAD if watches => "watch",
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT if !collection => "update",
            Method::PATCH if !collection => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => return Err(ApiError::method_not_allowed(self.method)),
        };
        let resource = match path.subresource.as_str() {
            "" => path.plural.clone(),
            subresource => format!("{}/{subresource}", path.plural),
        };
        self.caller.authorize(&attributes(verb, &path, &resource))?;
        if verb == "create" && path.version == "v1" && collection {
            // Reviews are asked, not stored.
            let known = super::reviews::REVIEWS;
            if known
                .iter()
                .any(|(group, plural, _)| *group == path.group && *plural == path.plural)
            {
                let request = parse(self.headers, &read(body, LARGEST_REVIEW).await?)?.value;
                let answer = review(self.caller, &path.group, &path.plural, &request);
                return answer.ok_or_else(ApiError::no_such_path);
            }
        }
        let target = self.target(&path)?;
        if target.ty.read_only && !matches!(verb, "get" | "list" | "watch") {
            return Err(ApiError::method_not_allowed(self.method));
        }
        match (verb, path.subresource.as_str()) {
            ("get", "" | "status") => self.get(&target),
            ("list", "") => self.list(&target),
            ("watch", "") => self.watch(target),
            ("create", "") if collection => {
                self.create(&target, read(body, LARGEST_BODY).await?).await
            }
            ("create", "token") => self.token(&target, &read(body, LARGEST_REVIEW).await?),
            ("update", "") => {
                self.update(&target, Part::Main, read(body, LARGEST_BODY).await?)
                    .await
            }
            ("update", "status") => {
                self.update(&target, Part::Status, read(body, LARGEST_BODY).await?)
                    .await
            }
            ("patch", "") => {
                self.patch(&target, Part::Main, read(body, LARGEST_BODY).await?)
                    .await
            }
            ("patch", "status") => {
                self.patch(&target, Part::Status, read(body, LARGEST_BODY).await?)
                    .await
            }
            ("delete", "") => self.delete(&target, read(body, LARGEST_BODY).await?).await,
            ("deletecollection", "") => {
                self.delete_collection(&target, read(body, LARGEST_BODY).await?)
                    .await
            }
            _ => Err(ApiError::method_not_allowed(self.method)),
        }
    }

    fn target(&self, path: &ResourcePath) -> Result<Target, ApiError> {
        let ty = self.api.registry.find(&path.group, &path.plural);
        let ty = ty.ok_or_else(ApiError::no_such_path)?;
        let version = ty
            .versions
            .iter()
            .position(|version| version.name == path.version);
        let version = version.ok_or_else(ApiError::no_such_path)?;
        let subresource_exists = match path.subresource.as_str() {
            "" => true,
            "status" => ty.versions[version].status,
            "token" => ty.is("", "serviceaccounts"),
            _ => false,
        };
        let misplaced = !ty.namespaced && !path.namespace.is_empty();
        let unplaced = ty.namespaced
            && path.namespace.is_empty()
            && (!path.name.is_empty() || *self.method == Method::POST);
        if !subresource_exists || misplaced {
            return Err(ApiError::no_such_path());
        }
        if unplaced {
            return Err(ApiError::bad_request(format!(
                "the resource {} is in namespaces: name one in the path",
                ty.qualified()
            )));
        }
        Ok(Target {
            ty: Arc::clone(ty),
            version,
            namespace: path.namespace.clone(),
            name: path.name.clone(),
        })
    }

    fn shape(&self) -> Result<Shape, ApiError> {
        Shape::negotiate(accept(self.headers), self.query.get("includeObject"))
    }

    fn object(&self, code: StatusCode, target: &Target, object: &Stored) -> Answer {
        let mut out = BytesMut::new();
        self.shape()?.write(self.api, target, object, &mut out);
        Ok(json_response(code, out))
    }

    fn written(&self, code: StatusCode, target: &Target, written: &Written) -> Answer {
        let mut response = self.object(code, target, &written.object)?;
        warn(&mut response, &written.warnings);
        Ok(response)
    }

    fn get(&self, target: &Target) -> Answer {
        self.object(StatusCode::OK, target, &*verbs::get(self.api, target)?)
    }

    fn list(&self, target: &Target) -> Answer {
        let shape = self.shape()?;
        let options = self.query.list_options(&target.ty)?;
        let page = verbs::list(self.api, target, &options)?;
        let mut out = BytesMut::new();
        shape.write_list(self.api, target, &page, &mut out);
        Ok(json_response(StatusCode::OK, out))
    }

    fn watch(&self, mut target: Target) -> Answer {
        let mut selection = self.query.list_options(&target.ty)?;
        let start = self.query.watch_start()?;
        if let (Start::Initial { .. }, revision) = (start, selection.at_least)
            && revision > self.api.store.read().revision
        {
            return Err(ApiError::timeout("Too large resource version"));
        }
        if !target.name.is_empty() {
            let name = std::mem::take(&mut target.name);
            let one = format!("metadata.name={name}");
            selection.fields = crate::selector::FieldSelector::parse(&one, |_| true)
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
        }
        let options = WatchOptions {
            selection,
            start,
            bookmarks: self.query.flag("allowWatchBookmarks"),
            life: self.query.timeout()?,
            shape: self.shape()?,
        };
        let watch = Watch::start(self.api, target, options)?;
        let mut response = json_response(StatusCode::OK, Bytes::new());
        *response.body_mut() = ResponseBody::watch(watch);
        Ok(response)
    }

    fn parsed(&self, bytes: &Bytes) -> Result<Body, ApiError> {
        let document = parse(self.headers, bytes)?;
        Ok(Body {
            value: document.value,
            duplicates: document.duplicates,
        })
    }

    async fn create(&self, target: &Target, bytes: Bytes) -> Answer {
        self.shape()?;
        let options = self.write_options("create", target)?;
        let body = self.parsed(&bytes)?;
        let written = verbs::create(self.api, target, body, options).await?;
        self.written(StatusCode::CREATED, target, &written)
    }

    async fn update(&self, target: &Target, part: Part, bytes: Bytes) -> Answer {
        self.shape()?;
        let options = self.write_options("update", target)?;
        let body = self.parsed(&bytes)?;
        let written = verbs::replace(self.api, target, part, body, options).await?;
        self.written(StatusCode::OK, target, &written)
    }

    async fn patch(&self, target: &Target, part: Part, bytes: Bytes) -> Answer {
        self.shape()?;
        let options = self.write_options("patch", target)?;
        let form = match media_type(self.headers) {
            "application/merge-patch+json" => Patch::Merge,
            "application/json-patch+json" => Patch::Json,
            "application/strategic-merge-patch+json" => Patch::Strategic,
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
                return Err(ApiError::unsupported_media_type(
                    "server-side apply is not supported by this server; \
                     use client-side apply: kubectl apply --server-side=false",
                ));
            }
            other => {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format ({other:?}) - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
                )));
            }
        };
        let document = json::parse_json(&bytes)
            .map_err(|error| ApiError::bad_request(format!("cannot read the patch: {error}")))?;
        let patch = form(document.value);
        let patched = verbs::patch(self.api, target, part, patch, document.duplicates, options);
        let written = patched.await?;
        self.written(StatusCode::OK, target, &written)
    }

    fn delete_options(&self, target: &Target, bytes: &Bytes) -> Result<DeleteOptions, ApiError> {
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            parse(self.headers, bytes)?.value
        };
        let text = |path: &[&str]| match json::text(&body, path) {
            "" => None,
            text => Some(text.to_owned()),
        };
        let policy = query::propagation(json::text(&body, &["propagationPolicy"]))?;
        let orphan = body.get("orphanDependents").and_then(Value::as_bool);
        let orphan = orphan.map(|orphan| {
            if orphan {
                verbs::Propagation::Orphan
            } else {
                verbs::Propagation::Background
            }
        });
        let dry_run = body.get("dryRun").and_then(Value::as_array);
        let mut dry = self.query.dry_run()?;
        for stage in dry_run.into_iter().flatten() {
            dry |= query::dry_run(stage.as_str().unwrap_or("?"))?;
        }
        Ok(DeleteOptions {
            propagation: policy
                .or(self.query.propagation()?)
                .or(orphan)
                .unwrap_or_default(),
            uid: text(&["preconditions", "uid"]),
            revision: text(&["preconditions", "resourceVersion"]),
            dry_run: dry,
            by: self.author("delete", target),
        })
    }

    async fn delete(&self, target: &Target, bytes: Bytes) -> Answer {
        self.shape()?;
        let options = self.delete_options(target, &bytes)?;
        let deleted = verbs::delete(self.api, target, &options).await?;
        match deleted {
            Deleted::Waiting(object) => self.object(StatusCode::OK, target, &object),
            Deleted::Gone(object) => {
                let uid = format_uid(object.uid);
                let status = success(&target.ty.group, &target.ty.plural, &target.name, &uid);
                Ok(json_response(StatusCode::OK, status.to_string()))
            }
        }
    }

    async fn delete_collection(&self, target: &Target, bytes: Bytes) -> Answer {
        let shape = self.shape()?;
        let options = self.delete_options(target, &bytes)?;
        let selection = self.query.list_options(&target.ty)?;
        let objects = verbs::delete_collection(self.api, target, &selection, &options).await?;
        let revision = self.api.store.read().revision;
        let page = verbs::Page {
            revision,
            objects,
            next: None,
        };
        let mut out = BytesMut::new();
        shape.write_list(self.api, target, &page, &mut out);
        Ok(json_response(StatusCode::OK, out))
    }

    fn write_options(&self, verb: &'static str, target: &Target) -> Result<WriteOptions, ApiError> {
        Ok(WriteOptions {
            by: self.author(verb, target),
            ..self.query.write_options()?
        })
    }

    /// Who writes, unless it is this process.
    fn author(&self, verb: &'static str, target: &Target) -> Option<Arc<Author>> {
        (*self.caller != Caller::in_process()).then(|| {
            Arc::new(Author {
                user: self.caller.name(),
                groups: self.caller.groups(),
                verb,
                kind: target.ty.kind.clone(),
            })
        })
    }

    /// `kubectl create token`.
    fn token(&self, target: &Target, bytes: &Bytes) -> Answer {
        let mut request = parse(self.headers, bytes)?.value;
        let account = verbs::get(self.api, target)?;
        let subject = || Subject::new("authentication.k8s.io", "TokenRequest", &target.name);
        let invalid = |cause| Err(ApiError::invalid(subject(), vec![cause]));
        let spec = request.get("spec").cloned().unwrap_or_default();
        if spec
            .get("boundObjectRef")
            .is_some_and(|reference| !reference.is_null())
        {
            let why = "tokens bound to other objects are not supported";
            return invalid(FieldError::forbidden("spec.boundObjectRef", why));
        }
        let audiences = spec.get("audiences").and_then(Value::as_array);
        let mut audiences: Vec<String> = audiences
            .into_iter()
            .flatten()
            .filter_map(|audience| Some(audience.as_str()?.to_owned()))
            .collect();
        if audiences.is_empty() {
            audiences.push(self.api.signer.issuer().to_owned());
        }
        if audiences.len() > 16 || audiences.iter().any(|audience| audience.len() > 253) {
            let why = "at most 16 audiences of 253 bytes";
            return invalid(FieldError::forbidden("spec.audiences", why));
        }
        let life = match spec
            .get("expirationSeconds")
            .filter(|seconds| !seconds.is_null())
        {
            None => DEFAULT_LIFE,
            Some(seconds) => match seconds.as_u64().map(Duration::from_secs) {
                Some(life) if life >= SHORTEST_LIFE => life.min(LONGEST_LIFE),
                _ => {
                    let why = "may not specify a duration less than 10 minutes";
                    return invalid(FieldError::invalid("spec.expirationSeconds", seconds, why));
                }
            },
        };
        let reference = ServiceAccountRef {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: format_uid(account.uid),
        };
        let now = self.api.now();
        let token = self.api.signer.issue(&reference, &audiences, life, now);
        let token = token.ok_or_else(|| ApiError::internal("cannot sign the token"))?;
        let expires = jiff::Timestamp::try_from(now + life).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        if !request.is_object() {
            request = json!({});
        }
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({"name": target.name, "namespace": target.namespace,
            "creationTimestamp": self.api.time_text()});
        request["spec"] = json!({"audiences": audiences, "expirationSeconds": life.as_secs(),
            "boundObjectRef": null});
        request["status"] = json!({"token": token, "expirationTimestamp": rfc3339(expires)});
        Ok(json_response(StatusCode::CREATED, request.to_string()))
    }
}
