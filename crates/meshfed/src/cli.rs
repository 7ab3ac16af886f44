//! What can be typed. What it means is decided where it is used.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use meshfed_controlplane::subnet::Subnet;
use serde::Deserialize;

use crate::tools::{
    DiffOptions, ExplainCommand, FAILED, Format, PeerCommand, StatusOptions, encode, one_line,
    remark, write,
};

/// Share a few named services between meshes that do not trust each other.
#[derive(Debug, Parser)]
#[command(name = "meshfed", version, propagate_version = true)]
#[command(after_help = "Start here: meshfed demo")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// How log lines on standard error look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, help_heading = "Logging")]
    log_format: LogFormat,

    /// What is logged: a level, or tracing directives such as info,meshfed_proxy=debug
    #[arg(long, global = true, env = "MESHFED_LOG", help_heading = "Logging", value_parser = log_level)]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How this process logs.
#[derive(Debug, Clone)]
pub struct Logging {
    pub format: LogFormat,
    pub level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one mesh: its API server, control plane and gateways
    Up(UpOptions),
    /// Run one federation gateway on its own, joined to its mesh
    Gateway(GatewayOptions),
    /// Run beside a workload: outbound proxy, inbound mutual TLS, registration
    Sidecar(SidecarOptions),
    /// Run beside a stock Envoy: keep its certificate and serve it over SDS
    Agent(AgentOptions),
    /// Run two or three meshes on this machine and let them share a service
    Demo(DemoOptions),
    /// Show the mesh on one screen, problems first
    Status(StatusOptions),
    /// Say why a service is shared with a peer, or what is in the way
    #[command(subcommand)]
    Explain(ExplainCommand),
    /// Say what applying files would share or take back, with nothing applied
    Diff(DiffOptions),
    /// Prepare the federation with another mesh
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Print the CustomResourceDefinitions, for kubectl apply -f -
    Crds {
        /// How they are printed [default: yaml, a document each]
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Print a completion script
    Completions { shell: clap_complete::Shell },
}

/// Also a command that logs nothing refuses what it cannot read.
fn log_level(text: &str) -> Result<String, meshfed_runtime::LogError> {
    meshfed_runtime::check_level(text)?;
    Ok(text.to_owned())
}

impl Cli {
    pub fn logging(&self) -> Logging {
        Logging {
            format: self.log_format,
            level: self.log_level.clone(),
        }
    }
}

/// Flags of `meshfed up`; each may stand in the file of `--config` instead, under the same name.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct UpOptions {
    /// YAML file with any of these options; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Name of the mesh [default: mesh]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Namespace of the control plane [default: <name>-system]
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Where everything is kept [default: ./meshfed-data/<name>]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The /24 of 127.0.0.0/8 that this mesh owns [default: one that is free]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Subnet>,

    /// Address on which NodePort services listen [default: the second of the subnet]
    #[arg(long, value_name = "IP")]
    node_address: Option<Ipv4Addr>,

    /// Gateways that run elsewhere, with meshfed gateway or as an Envoy
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    external_gateways: Vec<String>,

    /// Name servers for the names of peers' gateways [default: those of the system]
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    dns_server: Vec<SocketAddr>,

    /// Serve metrics, readiness and the configuration here [default: <subnet>.1:15014]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,

    /// Stop when standard input ends
    #[arg(long, hide = true)]
    #[serde(skip)]
    until_stdin_ends: bool,
}

/// What `meshfed up` was asked to do, with all defaults in place.
#[derive(Debug, Clone)]
pub struct Up {
    pub name: String,
    pub namespace: String,
    pub data_dir: PathBuf,
    pub subnet: Option<Subnet>,
    pub node_address: Option<Ipv4Addr>,
    pub external_gateways: Vec<String>,
    pub name_servers: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub until_stdin_ends: bool,
}

impl UpOptions {
    /// Joins flags and file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, holds something that is no option, or a name is no DNS label.
    pub fn resolve(self) -> anyhow::Result<Up> {
        let file = match &self.config {
            None => Self::default(),
            Some(path) => Self::read(path)?,
        };
        let name = self.name.or(file.name).unwrap_or_else(|| "mesh".to_owned());
        check_label("name", &name)?;
        let namespace = self
            .namespace
            .or(file.namespace)
            .unwrap_or_else(|| format!("{name}-system"));
        check_label("namespace", &namespace)?;
        fn either<T>(flag: Vec<T>, file: Vec<T>) -> Vec<T> {
            if flag.is_empty() { file } else { flag }
        }
        Ok(Up {
            data_dir: self
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| Path::new("meshfed-data").join(&name)),
            name,
            namespace,
            subnet: self.subnet.or(file.subnet),
            node_address: self.node_address.or(file.node_address),
            external_gateways: either(self.external_gateways, file.external_gateways),
            name_servers: either(self.dns_server, file.dns_server),
            admin: self.admin.or(file.admin),
            until_stdin_ends: self.until_stdin_ends,
        })
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let options = serde_saphyr::options! {
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
            // Its causes say the same again.
            anyhow::anyhow!(
                "the configuration {} makes no sense: {error}",
                path.display()
            )
        })
    }
}

/// Refuses what cannot be a name in Kubernetes.
fn check_label(what: &str, value: &str) -> anyhow::Result<()> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = !value.is_empty()
        && value.len() <= 56
        && value.bytes().all(inner)
        && !value.starts_with('-')
        && !value.ends_with('-');
    anyhow::ensure!(
        good,
        "the {what} {value:?} must be 1 to 56 characters of a-z, 0-9 and '-', with no '-' at its ends"
    );
    Ok(())
}

/// How a proxy of its own process joins its mesh.
#[derive(Debug, Clone, Args)]
pub struct JoinOptions {
    /// The control plane's gRPC address, such as https://127.64.1.1:15012
    #[arg(long, value_name = "URL")]
    pub control_plane: String,

    /// File with the root certificate of the mesh
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,

    /// File with a token of the ServiceAccount, from kubectl create token; read again at each use
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct GatewayOptions {
    #[command(flatten)]
    pub join: JoinOptions,

    /// Name of the gateway in the ServiceMeshControlPlane
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// Namespace of the control plane
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: String,

    /// Directory for the access log, <name>.log
    #[arg(long, value_name = "DIR", default_value = "logs")]
    pub log_dir: PathBuf,

    /// Name servers for the names of peers' gateways [default: those of the system]
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    pub dns_server: Vec<SocketAddr>,

    /// Serve metrics, readiness and the configuration here
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
}

#[derive(Debug, Clone, Args)]
pub struct SidecarOptions {
    #[command(flatten)]
    pub join: JoinOptions,

    /// Name of the workload; it becomes the name of its Pod
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// Namespace of the workload
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: String,

    /// Labels of the workload, which Services select it by
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,

    /// The workload's address in its mesh: others reach it there
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,

    /// Where the workload itself listens; without it, it only calls others
    #[arg(long, value_name = "IP:PORT")]
    pub app: Option<SocketAddr>,

    /// Port on which the workload calls others, through an explicit HTTP proxy
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,

    /// Directory for the access log, <name>.log
    #[arg(long, value_name = "DIR", default_value = "logs")]
    pub log_dir: PathBuf,

    /// Serve metrics, readiness and the configuration here
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
}

#[derive(Debug, Clone, Args)]
pub struct AgentOptions {
    #[command(flatten)]
    pub join: JoinOptions,

    /// Name of the gateway in the ServiceMeshControlPlane
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// Namespace of the control plane
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: String,

    /// Directory for the SDS socket and the Envoy bootstrap file envoy.json
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// Envoy's admin address in the bootstrap file
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub envoy_admin: SocketAddr,
}

#[derive(Debug, Clone, Args)]
pub struct DemoOptions {
    /// Verify every claim, then stop: exit status 0 or 1
    #[arg(long)]
    pub check: bool,

    /// Two meshes, or three with blue-mesh
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub meshes: u8,

    /// Keep the state here [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The definitions as one YAML stream, or as a list in JSON.
pub fn print_crds(format: Option<Format>) -> anyhow::Result<ExitCode> {
    let crds = meshfed_api::crds();
    if format == Some(Format::Json) {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": crds});
        write(&encode(&list, Format::Json)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for crd in crds {
        write(&format!(
            "---\n{}\n",
            serde_saphyr::to_string(&crd)?.trim_end()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn print_completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshfed", &mut script);
    write(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// How the program itself is used.
const PROGRAM_USAGE: &str = "meshfed [OPTIONS] <COMMAND>";

/// Help as it was asked for, or one line that says why the command line makes no sense.
pub fn answer(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    let text = error.render().to_string();
    match error.kind() {
        DisplayHelp | DisplayVersion => match write(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                remark(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        },
        // Of a command that has commands, in one line; of the program itself, all of them.
        DisplayHelpOnMissingArgumentOrSubcommand => {
            match usage(&text).filter(|usage| *usage != PROGRAM_USAGE) {
                Some(usage) => remark(&format!(
                    "a command is missing: {usage}; see --help for the commands"
                )),
                None => {
                    let _ = std::io::stderr().write_all(text.as_bytes());
                }
            }
            ExitCode::from(FAILED)
        }
        _ => {
            // What follows is how the command is used, which --help says too.
            let ends = ["\nUsage:", "\nFor more information"].map(|end| text.find(end));
            let end = ends.into_iter().flatten().min().unwrap_or(text.len());
            let said = text[..end].trim_start_matches("error: ");
            remark(&format!("{}; see --help", one_line(said)));
            ExitCode::from(FAILED)
        }
    }
}

/// How the command of this help is used.
fn usage(help: &str) -> Option<&str> {
    help.lines().find_map(|line| line.strip_prefix("Usage: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("up.yaml");
        std::fs::write(&file, "name: red-mesh\nsubnet: 127.64.1.0/24\n").unwrap();
        let options = UpOptions {
            config: Some(file),
            name: Some("green-mesh".to_owned()),
            ..UpOptions::default()
        };
        let up = options.resolve().unwrap();
        assert_eq!(up.name, "green-mesh");
        assert_eq!(up.namespace, "green-mesh-system");
        assert_eq!(up.subnet, Some(Subnet::new(64, 1)));
    }

    #[test]
    fn an_unknown_option_in_the_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("up.yaml");
        std::fs::write(&file, "naem: red-mesh\n").unwrap();
        let options = UpOptions {
            config: Some(file),
            ..UpOptions::default()
        };
        let error = format!("{:#}", options.resolve().unwrap_err());
        assert!(error.contains("naem"), "{error}");
    }

    #[test]
    fn a_name_that_is_no_label_is_refused() {
        let options = UpOptions {
            name: Some("Red_Mesh".to_owned()),
            ..UpOptions::default()
        };
        assert!(options.resolve().is_err());
    }
}
