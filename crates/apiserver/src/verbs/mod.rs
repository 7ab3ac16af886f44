//! What can be done with resources.

pub mod admit;
mod create;
mod delete;
mod list;
mod update;

use std::sync::Arc;

use serde_json::Value;

pub use self::{
    admit::Validation,
    create::{create, forget_system_fields},
    delete::{DeleteOptions, FOREGROUND, ORPHAN, Propagation, delete, delete_collection},
    list::{Cursor, ListOptions, Page, get, list, too_old},
    update::{Patch, patch, replace, settle},
};
use crate::store::{Author, Stored};

/// How a write is asked for.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Do everything but write.
    pub dry_run: bool,
    pub validation: Validation,
    /// Who asks, if that is to be told.
    pub by: Option<Arc<Author>>,
}

/// Which part of an object a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
}

/// An object after a write, and what its sender should know.
#[derive(Debug)]
pub struct Written {
    pub object: Arc<Stored>,
    pub warnings: Vec<String>,
}

/// What a deletion did.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone.
    Gone(Arc<Stored>),
    /// It waits for its finalizers.
    Waiting(Arc<Stored>),
}

/// A parsed body.
#[derive(Debug)]
pub struct Body {
    pub value: Value,
    /// Paths of fields that were given twice.
    pub duplicates: Vec<String>,
}
