//! Who may pass: Envoy's RBAC filters, action ALLOW.
//!
//! Policies are a map by name, so their order carries nothing and each name stands for one policy.
//!
//! Envoy's principals match *any* URI of a certificate, while its SPIFFE validator takes the first
//! to choose the root. A peer's authority could so add an identity of another peer to a certificate
//! of its own. Each policy therefore has a condition that the first URI is one of its principals.

use std::collections::BTreeMap;
use std::mem::take;

use meshfed_pki::SpiffeId;
use meshfed_proxy_config::AllowPolicy;
use prost::Message;

use crate::Reason;
use crate::pb::cel::{Constant, Expr, constant::ConstantKind, expr, expr::ExprKind};
use crate::pb::matcher::string_matcher::MatchPattern;
use crate::pb::rbac::{
    Permission, Policy, Principal, Rbac, permission::Rule, principal::Authenticated,
    principal::Identifier,
};
use crate::wire::{Path, Read, name, nothing_else, read_id, read_text, text};

/// `envoy.config.rbac.v3.RBAC` with its policies in the order of their names: the generated type
/// holds them in a hash map, and what is written must be the same each time.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OrderedRules {
    /// 0 is ALLOW.
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    policies: BTreeMap<String, Policy>,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`, ordered.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OrderedNetworkRbac {
    #[prost(message, optional, tag = "1")]
    pub(crate) rules: Option<OrderedRules>,
    #[prost(string, tag = "3")]
    pub(crate) stat_prefix: String,
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC`, ordered.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OrderedHttpRbac {
    #[prost(message, optional, tag = "1")]
    pub(crate) rules: Option<OrderedRules>,
}

pub(crate) fn rules(policies: &[AllowPolicy]) -> OrderedRules {
    OrderedRules {
        action: 0,
        policies: policies
            .iter()
            .map(|p| (p.name.clone(), policy(p)))
            .collect(),
    }
}

fn policy(p: &AllowPolicy) -> Policy {
    let rule = match &p.server_name_suffix {
        Some(suffix) if !suffix.is_empty() => {
            Rule::RequestedServerName(text(MatchPattern::Suffix(suffix.clone())))
        }
        _ => Rule::Any(true),
    };
    let authenticated = |principal_name| Principal {
        identifier: Some(Identifier::Authenticated(Authenticated { principal_name })),
    };
    let mut principals: Vec<Principal> = p
        .principals
        .iter()
        .map(|id| authenticated(Some(text(MatchPattern::Exact(id.to_string())))))
        .collect();
    if principals.is_empty() {
        principals.push(authenticated(None));
    }
    Policy {
        permissions: vec![Permission { rule: Some(rule) }],
        principals,
        condition: first_uri_is_one_of(&p.principals),
        ..Default::default()
    }
}

pub(crate) fn read_rules(at: &Path<'_>, mut m: Rbac) -> Read<Vec<AllowPolicy>> {
    let mut policies: Vec<(String, Policy)> = take(&mut m.policies).into_iter().collect();
    nothing_else(at, &m, &Rbac::default())?;
    policies.sort_by(|a, b| a.0.cmp(&b.0));
    policies
        .into_iter()
        .enumerate()
        .map(|(i, (key, p))| read_policy(&at.item("policies", i), key, p))
        .collect()
}

fn read_policy(at: &Path<'_>, key: String, mut p: Policy) -> Read<AllowPolicy> {
    let key = name(at, key)?;
    let permissions = take(&mut p.permissions);
    let principals = take(&mut p.principals);
    let condition = p.condition.take();
    nothing_else(at, &p, &Policy::default())?;

    let at_rule = &at.field("permissions");
    let rule = match <[Permission; 1]>::try_from(permissions) {
        Ok([Permission { rule: Some(rule) }]) => rule,
        _ => return Err(at_rule.refuse(Reason::Unsupported)),
    };
    let server_name_suffix = match rule {
        Rule::Any(true) => None,
        Rule::RequestedServerName(m) => match read_text(at_rule, m)? {
            MatchPattern::Suffix(s) if !s.is_empty() => Some(s),
            _ => return Err(at_rule.refuse(Reason::Unsupported)),
        },
        _ => return Err(at_rule.refuse(Reason::Unsupported)),
    };

    let mut ids = Vec::with_capacity(principals.len());
    let alone = principals.len() == 1;
    for (i, p) in principals.into_iter().enumerate() {
        let at = &at.item("principals", i);
        let Some(Identifier::Authenticated(Authenticated { principal_name })) = p.identifier else {
            return Err(at.refuse(Reason::Unsupported));
        };
        match principal_name {
            // Any authenticated client. Beside others it would make them void.
            None if alone => break,
            None => return Err(at.refuse(Reason::Missing)),
            Some(m) => match read_text(at, m)? {
                MatchPattern::Exact(id) => ids.push(read_id(at, &id)?),
                _ => return Err(at.refuse(Reason::Unsupported)),
            },
        }
    }
    if !alone && ids.is_empty() {
        return Err(at.field("principals").refuse(Reason::Missing));
    }
    if condition != first_uri_is_one_of(&ids) {
        return Err(at.field("condition").refuse(Reason::Unsupported));
    }
    Ok(AllowPolicy {
        name: key,
        principals: ids,
        server_name_suffix,
    })
}

/// `connection.uri_san_peer_certificate in [ids]`: that attribute is the first URI. `None` for no
/// ids, where any authenticated client will do.
fn first_uri_is_one_of(ids: &[SpiffeId]) -> Option<Expr> {
    let expr = |kind| Expr {
        expr_kind: Some(kind),
        ..Default::default()
    };
    if ids.is_empty() {
        return None;
    }
    let connection = ExprKind::IdentExpr(expr::Ident {
        name: "connection".to_string(),
    });
    let first = ExprKind::SelectExpr(Box::new(expr::Select {
        operand: Some(Box::new(expr(connection))),
        field: "uri_san_peer_certificate".to_string(),
        ..Default::default()
    }));
    let literal = |id: &SpiffeId| {
        expr(ExprKind::ConstExpr(Constant {
            constant_kind: Some(ConstantKind::StringValue(id.to_string())),
        }))
    };
    let list = ExprKind::ListExpr(expr::CreateList {
        elements: ids.iter().map(literal).collect(),
        ..Default::default()
    });
    Some(expr(ExprKind::CallExpr(Box::new(expr::Call {
        function: "@in".to_string(),
        args: vec![expr(first), expr(list)],
        ..Default::default()
    }))))
}
