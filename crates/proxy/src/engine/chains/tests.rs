use std::time::Duration;

use meshfed_proxy_config::{DEFAULT_DRAIN, Tcp, TcpTarget};
use proptest::prelude::*;

use super::*;

fn chain(name: String, server_names: Vec<ServerName>) -> FilterChain {
    FilterChain {
        name,
        server_names,
        tls: Some(DownstreamTls {
            trust: "t".into(),
            client_ids: vec![],
            alpn: vec![],
        }),
        drain: DEFAULT_DRAIN,
        network: Network::Tcp(Tcp {
            target: TcpTarget::SniCluster,
            allow: None,
            idle_timeout: Duration::ZERO,
        }),
    }
}

fn listener(chains: Vec<FilterChain>) -> Arc<Listener> {
    Arc::new(Listener {
        name: "l".into(),
        address: "127.0.0.1:0".parse().unwrap(),
        chains,
        handshake_timeout: Duration::from_secs(1),
    })
}

/// The definition: exact before suffix, longer suffix before shorter, then what matches anything.
fn naive<'a>(chains: &'a [FilterChain], sni: Option<&str>) -> Option<&'a str> {
    let rank = |name: &ServerName| -> Option<usize> {
        let sni = sni?.to_ascii_lowercase();
        match name {
            ServerName::Exact(exact) => (sni == exact.to_ascii_lowercase()).then_some(usize::MAX),
            ServerName::Suffix(suffix) => {
                let dotted = format!(".{}", suffix.to_ascii_lowercase());
                (sni.ends_with(&dotted) && sni.len() > dotted.len()).then_some(suffix.len())
            }
        }
    };
    let named = chains
        .iter()
        .flat_map(|c| c.server_names.iter().map(move |n| (c, n)))
        .filter_map(|(c, n)| Some((rank(n)?, c)))
        .max_by_key(|(rank, _)| *rank);
    let any = || chains.iter().find(|c| c.server_names.is_empty());
    named.map(|(_, c)| c).or_else(any).map(|c| c.name.as_str())
}

fn host() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec!["a", "B", "_", "outbound_", "c-d"]);
    prop::collection::vec(label, 1..5).prop_map(|labels| labels.join("."))
}

fn server_name() -> impl Strategy<Value = ServerName> {
    (host(), any::<bool>()).prop_map(|(host, exact)| {
        if exact {
            ServerName::Exact(host)
        } else {
            ServerName::Suffix(host)
        }
    })
}

proptest! {
    #[test]
    fn the_index_chooses_as_the_definition_says(
        names in prop::collection::vec(prop::collection::vec(server_name(), 0..4), 1..6),
        snis in prop::collection::vec(prop::option::of(host()), 20),
    ) {
        let chains: Vec<_> = names
            .into_iter()
            .enumerate()
            .map(|(n, names)| chain(format!("c{n}"), names))
            .collect();
        match Chains::new(listener(chains.clone()), None) {
            Ok(index) => {
                for sni in &snis {
                    let chosen = index.choose(sni.as_deref()).map(|c| &*c.name);
                    prop_assert_eq!(chosen, naive(&chains, sni.as_deref()), "{:?}", sni);
                }
            }
            Err(error) => prop_assert!(matches!(error, ChainsError::Ambiguous { .. }), "{error}"),
        }
    }
}

/// Chains named by their place, made again with other names for the places in `to`.
fn rearranged(
    names: Vec<Vec<ServerName>>,
    to: Vec<(usize, Vec<ServerName>)>,
) -> Option<(Chains, Chains)> {
    let chains = |names: &[Vec<ServerName>]| {
        let each = names.iter().enumerate();
        listener(
            each.map(|(n, names)| chain(format!("c{n}"), names.clone()))
                .collect(),
        )
    };
    let old = Chains::new(chains(&names), None).ok()?;
    let mut after = names;
    for (place, names) in to {
        match after.get_mut(place) {
            Some(there) => *there = names,
            None => after.push(names),
        }
    }
    let new = Chains::new(chains(&after), Some(&old)).ok()?;
    Some((old, new))
}

proptest! {
    #[test]
    fn a_connection_that_gets_another_chain_is_in_a_touched_one(
        names in prop::collection::vec(prop::collection::vec(server_name(), 0..3), 1..5),
        to in prop::collection::vec((0_usize..6, prop::collection::vec(server_name(), 0..3)), 1..3),
        snis in prop::collection::vec(prop::option::of(host()), 40),
    ) {
        let Some((old, new)) = rearranged(names, to) else { return Ok(()) };
        let touched = old.touched_by(&new);
        for sni in &snis {
            let Some(before) = old.choose(sni.as_deref()) else { continue };
            let after = new.choose(sni.as_deref());
            if !after.is_some_and(|after| Arc::ptr_eq(before, after)) {
                let found = touched.iter().any(|t| Arc::ptr_eq(t, before));
                prop_assert!(found, "{:?} was in {}", sni, before.name);
            }
        }
    }
}

#[test]
fn a_peer_that_comes_or_goes_touches_no_other_peers_connections() {
    let suffix = |peer: &str| vec![ServerName::Suffix(format!("svc.{peer}-exports.local"))];
    let two = vec![suffix("green"), suffix("blue")];
    let (old, new) = rearranged(two.clone(), vec![(2, suffix("gray"))]).unwrap();
    assert!(old.touched_by(&new).is_empty());
    let (old, new) = rearranged(two, vec![(1, suffix("gray"))]).unwrap();
    let names: Vec<_> = old
        .touched_by(&new)
        .iter()
        .map(|c| c.name.to_string())
        .collect();
    assert_eq!(names, ["c1"]);
}

#[test]
fn a_suffix_needs_one_label_more() {
    let chains = vec![chain(
        "c".into(),
        vec![ServerName::Suffix("a.local".into())],
    )];
    let index = Chains::new(listener(chains), None).unwrap();
    assert!(index.choose(Some("a.local")).is_none());
    assert!(index.choose(Some("xa.local")).is_none());
    assert!(index.choose(Some("outbound_.1_._.a.local")).is_some());
    assert!(index.choose(None).is_none());
}

#[test]
fn chains_that_contradict_each_other_are_refused() {
    let refused = |chains| Chains::new(listener(chains), None).err().unwrap();
    let exact = |n: &str| vec![ServerName::Exact(n.into())];
    let twice = vec![chain("1".into(), exact("a")), chain("2".into(), exact("A"))];
    assert!(matches!(refused(twice), ChainsError::Ambiguous { .. }));
    let any = vec![chain("1".into(), vec![]), chain("2".into(), vec![])];
    assert!(matches!(refused(any), ChainsError::Ambiguous { .. }));
    let named = vec![chain("1".into(), exact("a")), chain("1".into(), exact("b"))];
    assert!(matches!(refused(named), ChainsError::SameName(_)));
    let mut plain = chain("2".into(), vec![]);
    plain.tls = None;
    let mixed = vec![chain("1".into(), exact("a")), plain.clone()];
    assert!(matches!(refused(mixed), ChainsError::MixedTls(_)));
    plain.server_names = exact("a");
    assert!(matches!(
        refused(vec![plain]),
        ChainsError::NameWithoutTls(_)
    ));
}

#[test]
fn a_chain_that_did_not_change_is_taken_over() {
    let name = |n: &str| vec![ServerName::Exact(n.into())];
    let old = vec![chain("1".into(), name("a")), chain("2".into(), name("b"))];
    let old = Chains::new(listener(old), None).unwrap();
    let new = vec![chain("1".into(), name("a")), chain("2".into(), name("c"))];
    let new = Chains::new(listener(new), Some(&old)).unwrap();
    let same = |n| Arc::ptr_eq(old.by_name(n).unwrap(), new.by_name(n).unwrap());
    assert!(same("1"));
    assert!(!same("2"));
}

#[test]
fn a_policy_needs_all_its_conditions_and_no_policy_admits_nobody() {
    let id: SpiffeId = "a.local/ns/b/sa/c".parse().unwrap();
    let other: SpiffeId = "a.local/ns/b/sa/d".parse().unwrap();
    let policy = AllowPolicy {
        name: "p".into(),
        principals: vec![id.clone()],
        server_name_suffix: Some(".exports.local".into()),
    };
    let both = std::slice::from_ref(&policy);
    let sni = Some("outbound_.1_._.x.exports.local");
    assert_eq!(allowed(Some(both), Some(&id), sni), Ok(Some(&policy)));
    assert_eq!(allowed(Some(both), Some(&other), sni), Err(NotAllowed));
    assert_eq!(
        allowed(Some(both), Some(&id), Some("x.local")),
        Err(NotAllowed)
    );
    assert_eq!(allowed(Some(both), Some(&id), None), Err(NotAllowed));
    assert_eq!(allowed(Some(&[]), Some(&id), sni), Err(NotAllowed));
    assert_eq!(allowed(None, None, None), Ok(None));
    let anyone = AllowPolicy {
        name: "anyone".into(),
        principals: vec![],
        server_name_suffix: None,
    };
    let anyone = std::slice::from_ref(&anyone);
    assert!(allowed(Some(anyone), Some(&other), None).is_ok());
    // Any authenticated one, that is.
    assert_eq!(allowed(Some(anyone), None, sni), Err(NotAllowed));
}
