//! A certificate is got, and kept fresh, against all that can go wrong on the way.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Authority, ControlPlane, ISTIOD, PATIENCE, RATINGS, TOKEN, id};
use meshfed_agent::{
    CaClient, CertificateError, ConnectError, ControlPlaneOptions, IdentityKeeper, IdentityMetrics,
    RootSource, TokenSource,
};
use meshfed_pki::IdentityCell;
use meshfed_runtime::Drain;
use meshfed_testkit::{LoopbackNet, eventually, temp_dir};

fn token(text: &str) -> TokenSource {
    let text = text.to_string();
    TokenSource::Call(Arc::new(move || {
        let text = text.clone();
        Box::pin(async move { Ok(text) })
    }))
}

fn client(options: ControlPlaneOptions, token: TokenSource) -> CaClient {
    let control_plane = meshfed_agent::ControlPlane::new(options).unwrap();
    CaClient::new(control_plane, token, id(RATINGS))
}

fn nothing() -> Arc<IdentityCell> {
    Arc::new(IdentityCell::new(None))
}

#[tokio::test(flavor = "current_thread")]
async fn a_good_token_buys_a_certificate_of_its_service_account() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let client = client(control_plane.options(), token(TOKEN));
    let identity = client.certificate(&nothing()).await.unwrap();
    assert_eq!(identity.id, Some(id(RATINGS)));
    assert_eq!(identity.chain.len(), 1, "the root is not part of the chain");
    let other = client.certificate(&nothing()).await.unwrap();
    assert_ne!(
        *identity.key.to_pkcs8_pem(),
        *other.key.to_pkcs8_pem(),
        "each certificate has a key of its own"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_bad_token_buys_nothing() {
    let control_plane = ControlPlane::start(&Authority::new()).await;
    let client = client(control_plane.options(), token("stolen-and-expired"));
    let refused = client.certificate(&nothing()).await.unwrap_err();
    assert!(
        matches!(refused, CertificateError::Refused { .. }),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_token_of_another_service_account_is_noticed() {
    let authority = Authority::new();
    let other = id("spiffe://red-mesh.local/ns/bookinfo/sa/details");
    let tokens = [("another".to_string(), other.clone())].into();
    *authority.tokens.lock().unwrap() = tokens;
    let control_plane = ControlPlane::start(&authority).await;
    let client = client(control_plane.options(), token("another"));
    match client.certificate(&nothing()).await.unwrap_err() {
        CertificateError::WrongIdentity { wanted, got } => {
            assert_eq!((wanted, got), (id(RATINGS), Some(other)));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn neither_key_nor_token_goes_to_a_control_plane_that_is_not_ours() {
    let authority = Authority::new();
    let any = "127.0.0.1:0".parse().unwrap();

    // Our own authority, but one of the workloads instead of the control plane.
    let workload = ControlPlane::start_with(&authority, any, RATINGS, |r| r).await;
    // The right name, from an authority that is not ours.
    let stranger = Authority::new();
    let forged = ControlPlane::start_with(&stranger, any, ISTIOD, |r| r).await;
    for server in [&workload, &forged] {
        let mut options = server.options();
        options.root = RootSource::Pem(authority.ca.root_pem().into());
        let client = client(options, token(TOKEN));
        let refused = client.certificate(&nothing()).await.unwrap_err();
        let connect = matches!(
            refused,
            CertificateError::Connect(ConnectError::Connect { .. })
        );
        assert!(connect, "{refused:?}");
    }
    assert!(authority.proofs.lock().unwrap().is_empty());
    assert!(stranger.proofs.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_certificate_that_is_still_good_renews_itself_when_the_token_is_not() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let client = client(control_plane.options(), token("expired-meanwhile"));
    let current = Arc::new(IdentityCell::new(Some(authority.identity_of(RATINGS))));
    client.certificate(&current).await.unwrap();
    assert_eq!(*authority.proofs.lock().unwrap(), ["certificate"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_token_file_is_read_anew_until_it_holds_a_good_token() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let dir = temp_dir();
    let path = dir.path().join("token");
    let client = client(control_plane.options(), TokenSource::File(path.clone()));
    let keeper = IdentityKeeper::new(client, IdentityMetrics::default());
    let cell = keeper.cell();
    let (drain, watch) = Drain::new();
    let running = tokio::spawn(keeper.run(watch));

    let missing = TokenSource::File(path.clone()).token().await;
    assert!(missing.unwrap_err().to_string().contains("token"));
    std::fs::write(&path, "two words").unwrap();
    assert!(TokenSource::File(path.clone()).token().await.is_err());
    assert!(cell.get().is_none());
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    eventually(PATIENCE, async || cell.get().ok_or("no identity")).await;

    drain.signal();
    running.await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_control_plane_that_comes_late_is_found_and_the_next_certificate_comes_in_time() {
    let authority = Authority::new();
    *authority.ttl.lock().unwrap() = Duration::from_secs(8);
    let first = ControlPlane::start(&authority).await;
    let (address, options) = (first.address, first.options());
    drop(first);
    let client = client(options, token(TOKEN));
    let keeper = IdentityKeeper::new(client, IdentityMetrics::default());
    let (cell, mut changes) = (keeper.cell(), keeper.changes());
    let (_drain, watch) = Drain::new();
    tokio::spawn(keeper.run(watch));

    let second = eventually(PATIENCE, async || {
        // The address may take a moment to be free.
        tokio::net::TcpListener::bind(address).await.map(drop)?;
        let on = ControlPlane::start_with(&authority, address, ISTIOD, |r| r).await;
        Ok::<_, std::io::Error>(on)
    })
    .await;
    for _ in 0..2 {
        tokio::time::timeout(PATIENCE, changes.changed())
            .await
            .unwrap()
            .unwrap();
        let now = changes.borrow_and_update().clone().unwrap();
        assert!(now.not_after > std::time::SystemTime::now());
        assert_eq!(cell.identity().unwrap().chain, now.chain);
    }

    // Away again: what is there stays.
    drop(second);
    assert!(cell.get().is_some());
}

/// Another control plane at the address of one that is gone.
async fn again(gone: ControlPlane, authority: &Arc<Authority>, as_id: &str) -> ControlPlane {
    let address = gone.address;
    drop(gone);
    eventually(PATIENCE, async || {
        tokio::net::TcpListener::bind(address).await.map(drop)
    })
    .await;
    ControlPlane::start_with(authority, address, as_id, |r| r).await
}

#[tokio::test(flavor = "current_thread")]
async fn when_the_mesh_is_in_another_trust_domain_its_certificate_is_got_at_once() {
    let authority = Authority::new();
    let first = ControlPlane::start(&authority).await;
    let control_plane = meshfed_agent::ControlPlane::new(first.options()).unwrap();
    let client = CaClient::new(control_plane.clone(), token(TOKEN), id(RATINGS));
    let keeper = IdentityKeeper::new(client.clone(), IdentityMetrics::default());
    let cell = keeper.cell();
    let (_drain, watch) = Drain::new();
    tokio::spawn(keeper.run(watch));
    let holds = async |wanted: &str| {
        eventually(PATIENCE, async || {
            let id = cell.identity().and_then(|identity| identity.id.clone());
            (id == Some(wanted.parse().unwrap()))
                .then_some(())
                .ok_or(id)
        })
        .await;
    };
    holds(RATINGS).await;

    let (istiod, ratings) = (
        ISTIOD.replace("red-mesh.local", "red2.local"),
        RATINGS.replace("red-mesh.local", "red2.local"),
    );
    authority.tokens.lock().unwrap().clear();
    let _second = again(first, &authority, &istiod).await;
    // As a stream does, that was cut.
    assert!(control_plane.connect(cell.clone()).await.is_err());
    assert_eq!(control_plane.server(), id(&istiod));
    // The certificate of before is shown for no other purpose than to get the next one.
    let early = control_plane.connect(cell.clone()).await.unwrap_err();
    let early = std::error::Error::source(&early).unwrap();
    assert!(format!("{early:?}").contains("NewTrustDomain"), "{early:?}");
    assert!(
        authority
            .proofs
            .lock()
            .unwrap()
            .iter()
            .all(|p| *p == "token")
    );

    // This control plane does not remember the domain before. What can be done about is told.
    let refused = client.certificate(&cell).await.unwrap_err();
    assert!(
        matches!(refused, CertificateError::Refused { .. }),
        "{refused:?}"
    );

    let tokens = [(TOKEN.to_owned(), id(&ratings))];
    authority.tokens.lock().unwrap().extend(tokens);
    holds(&ratings).await;
    control_plane.connect(cell.clone()).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn who_claims_another_trust_domain_is_followed_only_as_the_same_account_by_root_and_address()
{
    let ours = Authority::new();
    let moved = ISTIOD.replace("red-mesh.local", "red2.local");
    let elsewhere = |change: &str| moved.replace("istiod-red-mesh", change);
    // A certificate of a workload has no address in it.
    let mut nameless = Authority::new();
    Arc::get_mut(&mut nameless).unwrap().addresses.clear();
    let stranger = Authority::new();
    let cases = [
        (&ours, &ours, elsewhere("ratings"), false),
        (
            &ours,
            &ours,
            moved.replace("red-mesh-system", "bookinfo"),
            false,
        ),
        (&ours, &stranger, moved.clone(), false),
        (&nameless, &nameless, moved.clone(), false),
        (&ours, &ours, moved.clone(), true),
    ];
    let any = "127.0.0.1:0".parse().unwrap();
    for (root, authority, shows, follows) in cases {
        let server = ControlPlane::start_with(authority, any, &shows, |r| r).await;
        let mut options = server.options();
        options.root = RootSource::Pem(root.ca.root_pem().into());
        let control_plane = meshfed_agent::ControlPlane::new(options).unwrap();
        for _ in 0..2 {
            let connected = control_plane.connect(nothing()).await;
            let is_followed = control_plane.server() == id(&shows);
            assert_eq!(is_followed, follows, "{shows}: {connected:?}");
            assert!(follows || connected.is_err(), "{shows}");
        }
    }
}

#[test]
fn a_control_plane_without_a_usable_name_is_refused_at_once() {
    for host in ["", "not a host", "a/b"] {
        let refused = meshfed_agent::ControlPlane::new(ControlPlaneOptions {
            host: host.to_string(),
            port: 15012,
            root: RootSource::File("/nowhere".into()),
            server: id(ISTIOD),
        });
        assert!(matches!(refused, Err(ConnectError::BadHost(_))), "{host:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn when_the_mesh_has_another_root_a_certificate_of_it_is_got_by_the_token_alone() {
    let net = LoopbackNet::lock();
    let address = std::net::SocketAddr::new(net.address(1), 15012);
    let (old, new) = (Authority::at(address.ip()), Authority::at(address.ip()));
    let dir = temp_dir();
    let file = dir.path().join("root-cert.pem");
    std::fs::write(&file, old.ca.root_pem()).unwrap();
    let first = ControlPlane::start_with(&old, address, ISTIOD, |r| r).await;
    let mut options = first.options();
    options.root = RootSource::File(file.clone());
    let control_plane = meshfed_agent::ControlPlane::new(options).unwrap();
    let client = CaClient::new(control_plane.clone(), token(TOKEN), id(RATINGS));
    let keeper = IdentityKeeper::new(client, IdentityMetrics::default());
    let cell = keeper.cell();
    let (_drain, watch) = Drain::new();
    tokio::spawn(keeper.run(watch));
    let is_of = async |authority: &Authority| {
        let trust = Arc::new(authority.trust(id(RATINGS).trust_domain()));
        eventually(PATIENCE, async || match cell.identity() {
            Some(held) if held.is_accepted_by(trust.clone(), SystemTime::now()) => Ok(()),
            other => Err(other),
        })
        .await;
    };
    is_of(&old).await;

    // As its control plane starts anew with another root, and a stream is opened again.
    drop(first);
    let second = eventually(PATIENCE, async || {
        tokio::net::TcpListener::bind(address).await.map(drop)?;
        Ok::<_, std::io::Error>(ControlPlane::start_with(&new, address, ISTIOD, |r| r).await)
    })
    .await;
    std::fs::write(&file, new.ca.root_pem()).unwrap();
    control_plane.connect(cell.clone()).await.unwrap();
    is_of(&new).await;
    assert_eq!(*new.proofs.lock().unwrap(), ["token"]);
    drop(second);
}
