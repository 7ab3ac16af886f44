//! The kinds that are served: rows of a table ([`builtin`]) or resource definitions ([`crd`]).

mod builtin;
mod cells;
mod columns;
mod crd;
mod rules;
mod service;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value};

pub use self::{
    columns::{Column, Source},
    crd::{object as definition_object, priority},
};
use crate::{
    error::{FieldError, OpenError},
    schema::Schema,
    store::{KindId, StoreKind, head},
};

/// What is done with objects of a builtin kind beyond their schema.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// Completes an object; the old one is given on updates.
    pub prepare: fn(&mut Value, Option<&Value>),
    /// Judges a complete object.
    pub validate: fn(&Value, Option<&Value>, &mut Vec<FieldError>),
}

/// The form that names of a kind have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameForm {
    Subdomain,
    Label,
    /// A label that starts with a letter.
    ServiceLabel,
}

/// A kind in one group, as it is served.
#[derive(Debug)]
pub struct ResourceType {
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub store: KindId,
    pub stored_as: StoreKind,
    /// The preferred one first.
    pub versions: Vec<Version>,
    /// Fields that can be selected on, in the order of `Stored::fields`; metadata.name and
    /// metadata.namespace always can.
    pub selectable: Vec<String>,
    pub name_form: NameForm,
    pub strategy: Strategy,
    /// Made from a resource definition.
    pub custom: bool,
    /// `metadata.generation` counts changes of the object's intent.
    pub generation: bool,
    /// Clients may not change it.
    pub read_only: bool,
    /// A new object may come with its status.
    pub status_on_create: bool,
    /// Who writes such an object is told this.
    pub warning: Option<String>,
}

/// A version of a kind.
#[derive(Debug)]
pub struct Version {
    pub name: String,
    /// `v1` or `group/v1`.
    pub api_version: String,
    pub schema: Arc<Schema>,
    pub status: bool,
    pub columns: Vec<Column>,
    /// Top-level fields that have another name in storage: name here, name there.
    pub renamed: &'static [(&'static str, &'static str)],
    /// See [`crate::store::head`].
    pub head: String,
    pub openapi: OpenApi,
    /// A warning for those who use it.
    pub deprecation: Option<String>,
}

/// Where the documentation of a version's schema comes from.
#[derive(Debug)]
pub enum OpenApi {
    /// The end of a builtin definition's name.
    Builtin(&'static str),
    /// The schema of a resource definition, as JSON.
    Custom(Bytes),
}

impl ResourceType {
    /// `plural.group`, or the plural for the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }
}

impl Version {
    fn new(group: &str, name: &str, kind: &str, schema: Arc<Schema>, openapi: OpenApi) -> Self {
        let api_version = if group.is_empty() {
            name.to_owned()
        } else {
            format!("{group}/{name}")
        };
        Self {
            name: name.to_owned(),
            head: head(&api_version, kind),
            api_version,
            schema,
            openapi,
            status: false,
            columns: Vec::new(),
            renamed: &[],
            deprecation: None,
        }
    }

    /// From the stored form to this version's.
    pub fn read_stored(&self, value: Value) -> Value {
        rename(
            value,
            self.renamed.iter().map(|(here, there)| (*there, *here)),
        )
    }

    /// From this version's form to the stored one.
    pub fn to_storage(&self, value: Value) -> Value {
        rename(value, self.renamed.iter().copied())
    }
}

fn rename<'a>(value: Value, names: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Value {
    let Value::Object(fields) = value else {
        return value;
    };
    let renamed = fields.into_iter().map(|(name, field)| {
        let to = names.clone().find(|(from, _)| *from == name);
        (to.map_or(name, |(_, to)| to.to_owned()), field)
    });
    Value::Object(renamed.collect())
}

/// All kinds.
#[derive(Debug)]
pub struct Registry {
    types: Vec<Arc<ResourceType>>,
    by_plural: HashMap<(String, String), usize>,
    store_kinds: Vec<StoreKind>,
    pub namespaces: KindId,
    pub service_accounts: KindId,
    pub events: KindId,
    pub definitions: KindId,
}

impl Registry {
    /// The builtin kinds and those of the definitions.
    pub fn new(crds: &[CustomResourceDefinition]) -> Result<Self, OpenError> {
        let unusable = |name: &str| {
            let name = name.to_owned();
            move |message: String| OpenError::Definition { name, message }
        };
        let mut registry = Self {
            types: Vec::new(),
            by_plural: HashMap::new(),
            store_kinds: Vec::new(),
            namespaces: KindId(0),
            service_accounts: KindId(0),
            events: KindId(0),
            definitions: KindId(0),
        };
        let object_meta = {
            let definitions = crate::schema::builtin::definitions();
            builtin::add(&mut registry, &definitions)
                .map_err(|error| unusable("of a builtin kind")(error.to_string()))?
        };
        for crd in crds {
            let name = crd.metadata.name.clone().unwrap_or_default();
            let ty = crd::read(crd, &object_meta).map_err(|e| unusable(&name)(e.to_string()))?;
            let taken = (ty.group.clone(), ty.plural.clone());
            if registry.by_plural.contains_key(&taken) {
                return Err(unusable(&name)("defined twice".to_owned()));
            }
            registry.add(ty);
        }
        registry.namespaces = registry.store_of("", "namespaces");
        registry.service_accounts = registry.store_of("", "serviceaccounts");
        registry.events = registry.store_of("", "events");
        registry.definitions =
            registry.store_of("apiextensions.k8s.io", "customresourcedefinitions");
        Ok(registry)
    }

    pub fn store_kinds(&self) -> Vec<StoreKind> {
        self.store_kinds.clone()
    }

    pub fn types(&self) -> impl Iterator<Item = &Arc<ResourceType>> {
        self.types.iter()
    }

    pub fn find(&self, group: &str, plural: &str) -> Option<&Arc<ResourceType>> {
        let index = self.by_plural.get(&(group.to_owned(), plural.to_owned()))?;
        Some(&self.types[*index])
    }

    /// The first type of a stored kind.
    pub fn of_store(&self, kind: KindId) -> Option<&Arc<ResourceType>> {
        self.types.iter().find(|ty| ty.store == kind)
    }

    fn store_of(&self, group: &str, plural: &str) -> KindId {
        self.find(group, plural).map_or(KindId(0), |ty| ty.store)
    }

    /// Adds a type with a storage of its own.
    fn add(&mut self, mut ty: ResourceType) {
        ty.store = KindId(self.store_kinds.len() as u16);
        ty.stored_as = StoreKind {
            path: format!("{}/{}", ty.group, ty.plural),
            selectable: ty
                .selectable
                .iter()
                .map(|field| field.split('.').map(str::to_owned).collect())
                .collect(),
            spec_finalizers: ty.is("", "namespaces"),
        };
        self.store_kinds.push(ty.stored_as.clone());
        self.add_sharing(ty);
    }

    /// Adds a type whose `store` is that of another.
    fn add_sharing(&mut self, ty: ResourceType) {
        let name = (ty.group.clone(), ty.plural.clone());
        self.by_plural.insert(name, self.types.len());
        self.types.push(Arc::new(ty));
    }
}

/// The definitions and the shared schema of ObjectMeta, passed around while types are made.
type Definitions = Map<String, Value>;
