//! The drain period of clusters and filter chains, in their metadata.
//!
//! Envoy knows no such period for a single resource and reads past metadata of names that it does
//! not know. Ours stands in the resource itself, so that it is still known when that is taken away.

use std::collections::HashMap;
use std::time::Duration;

use meshfed_proxy_config::{DEFAULT_DRAIN, MAX_DRAIN};

use crate::Reason;
use crate::pb::{Struct, Value, core, value};
use crate::wire::{Path, Read};

/// What our own metadata stands under, here and elsewhere.
pub(crate) const NAMESPACE: &str = "meshfed.io";
const KEY: &str = "drain_period_ms";

/// None means the default, which nearly everything has.
pub(crate) fn metadata(period: Duration) -> Option<core::Metadata> {
    let millis = whole_millis(period.min(MAX_DRAIN));
    (millis != whole_millis(DEFAULT_DRAIN)).then(|| with(f64::from(millis)))
}

pub(crate) fn read(at: &Path<'_>, metadata: Option<core::Metadata>) -> Read<Duration> {
    let Some(metadata) = metadata else {
        return Ok(DEFAULT_DRAIN);
    };
    let millis = number(&metadata).filter(|n| metadata == with(*n));
    let Some(millis) = millis else {
        return Err(at.refuse(Reason::Unsupported));
    };
    let longest = f64::from(whole_millis(MAX_DRAIN));
    if (0.0..=longest).contains(&millis) && millis.fract() == 0.0 {
        Ok(Duration::from_millis(millis as u64))
    } else {
        Err(at.refuse(Reason::OutOfRange))
    }
}

fn whole_millis(period: Duration) -> u32 {
    u32::try_from(period.as_millis()).unwrap_or(u32::MAX)
}

fn number(metadata: &core::Metadata) -> Option<f64> {
    let value = metadata.filter_metadata.get(NAMESPACE)?.fields.get(KEY)?;
    match value.kind {
        Some(value::Kind::NumberValue(number)) => Some(number),
        _ => None,
    }
}

fn with(millis: f64) -> core::Metadata {
    let value = Value {
        kind: Some(value::Kind::NumberValue(millis)),
    };
    let fields = Struct {
        fields: HashMap::from([(KEY.to_owned(), value)]),
    };
    core::Metadata {
        filter_metadata: HashMap::from([(NAMESPACE.to_owned(), fields)]),
        ..Default::default()
    }
}
