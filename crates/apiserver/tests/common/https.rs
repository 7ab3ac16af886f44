//! The same server over HTTPS, with a certificate authority of its own.

use std::{path::PathBuf, sync::Arc, time::Duration};

use meshfed_apiserver::{ApiServer, Kubeconfig, Options, kubeconfig, tls_config};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio::{net::TcpListener, sync::oneshot};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root_pem: String,
}

pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "test mesh");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root_pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            root_pem,
        }
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    pub fn server(&self) -> Identity {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A client of an organisation, with URIs as a workload has them.
    pub fn client(
        &self,
        organization: &str,
        uris: &[&str],
        purpose: ExtendedKeyUsagePurpose,
    ) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "admin");
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.extended_key_usages = vec![purpose];
        for uri in uris {
            params
                .subject_alt_names
                .push(SanType::URI((*uri).try_into().unwrap()));
        }
        self.issue(params)
    }

    pub fn admin(&self) -> Identity {
        self.client("system:masters", &[], ExtendedKeyUsagePurpose::ClientAuth)
    }
}

impl Identity {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let parsed = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes());
        parsed.map(Result::unwrap).collect()
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap()
    }
}

/// Answers with one certificate, whatever the name.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub struct HttpsServer {
    pub server: ApiServer,
    pub url: String,
    pub authority: Authority,
    pub dir: tempfile::TempDir,
    pub kubeconfig: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl HttpsServer {
    pub async fn start(configure: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = super::options(&dir.path().join("data"));
        configure(&mut options);
        let server = ApiServer::open(options).unwrap();
        let authority = Authority::new();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let identity = authority.server();
        let key = provider
            .key_provider
            .load_private_key(identity.key())
            .unwrap();
        let resolver = One(Arc::new(CertifiedKey::new(identity.chain(), key)));
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.root_pem.as_bytes()).unwrap())
            .unwrap();
        let tls = tls_config(provider, Arc::new(resolver), roots).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let task = tokio::spawn(async move {
            let drain = async move { stopped.await.unwrap_or(()) };
            serving.serve_https(listener, tls, drain).await.unwrap();
        });
        let admin = authority.admin();
        let text = kubeconfig(&Kubeconfig {
            server: &url,
            ca_pem: &authority.root_pem,
            certificate_pem: &admin.certificate_pem,
            key_pem: &admin.key_pem,
            context: "test-mesh",
            namespace: "default",
        });
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text).unwrap();
        Self {
            server,
            url,
            authority,
            dir,
            kubeconfig,
            stop: Some(stop),
            task,
        }
    }

    /// Drains; fails if that takes longer than its limit allows.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(Duration::from_secs(15), &mut self.task)
            .await
            .unwrap()
            .unwrap();
    }
}
