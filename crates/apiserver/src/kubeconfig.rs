//! The file that tells kubectl where the server is and who its user is.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

/// An administrator's access to a server.
#[derive(Debug, Clone, Copy)]
pub struct Kubeconfig<'a> {
    /// `https://host:port`
    pub server: &'a str,
    /// The root of the server's certificate, PEM.
    pub ca_pem: &'a str,
    /// The client certificate, leaf first, PEM.
    pub certificate_pem: &'a str,
    /// Its key, PEM.
    pub key_pem: &'a str,
    /// The name of context, cluster and user.
    pub context: &'a str,
    /// The namespace of commands that name none.
    pub namespace: &'a str,
}

/// The text of the file. It holds a private key: write it with mode 0600. It is JSON, which is YAML
/// as well.
pub fn kubeconfig(access: &Kubeconfig<'_>) -> String {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": access.context,
        "clusters": [{"name": access.context, "cluster": {
            "server": access.server,
            "certificate-authority-data": encode(access.ca_pem),
        }}],
        "users": [{"name": access.context, "user": {
            "client-certificate-data": encode(access.certificate_pem),
            "client-key-data": encode(access.key_pem),
        }}],
        "contexts": [{"name": access.context, "context": {
            "cluster": access.context,
            "user": access.context,
            "namespace": access.namespace,
        }}],
        "preferences": {},
    });
    format!("{config:#}\n")
}
