//! The file that tells kubectl where the server is and who its user is.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

/// An administrator's access to a server.
#[derive(Clone, Copy)]
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

/// The text of the file, YAML. It holds a private key: write it with mode 0600.
pub fn kubeconfig(access: &Kubeconfig<'_>) -> String {
    // A JSON text is a YAML text as well, whatever is in it.
    let text = |text: &str| Value::from(text).to_string();
    let (context, namespace) = (text(access.context), text(access.namespace));
    let server = text(access.server);
    let ca = BASE64_STANDARD.encode(access.ca_pem);
    let certificate = BASE64_STANDARD.encode(access.certificate_pem);
    let key = BASE64_STANDARD.encode(access.key_pem);
    format!(
        "\
apiVersion: v1
kind: Config
current-context: {context}
clusters:
- name: {context}
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {context}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: {context}
  context:
    cluster: {context}
    user: {context}
    namespace: {namespace}
preferences: {{}}
"
    )
}
