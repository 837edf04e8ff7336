//! Real object stores, installed by `scripts/test-servers`, started here on free ports of the
//! loopback interface and killed when dropped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_store::StoreOptions;
use tempfile::TempDir;

use super::admin::{Admin, Who};

/// A server that runs.
pub struct Running {
    command: Command,
    child: Option<Child>,
    directory: TempDir,
    /// Answers when the server is ready.
    port: u16,
    pub options: StoreOptions,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn installed(path: &str) -> Option<PathBuf> {
    let asked = std::env::var_os("BACKSTAY_TEST_SERVERS").map(PathBuf::from);
    let usual = std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".cache/backstay-test-servers"));
    let mut paths =
        asked.into_iter().chain(usual).map(|root| root.join("object-stores").join(path));
    let path = paths.clone().find(|path| path.exists()).or_else(|| paths.next())?;
    if path.exists() {
        return Some(path);
    }
    super::skip(&format!("{} is missing; run scripts/test-servers", path.display()));
    None
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until all are known, so that no two are the same.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.each_ref().map(|listener| listener.local_addr().unwrap().port())
}

/// One request over plain HTTP; the status and the whole answer.
fn request(port: u16, method: &str, path: &str, headers: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\
         content-length: 0\r\n{headers}\r\n"
    )
    .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Some((answer.get(9..12)?.parse().ok()?, answer))
}

/// Polls until `ready`; panics with the server's log when that takes a minute.
fn until(running: &mut Running, what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        let log = || std::fs::read_to_string(running.directory.path().join("log")).unwrap();
        let child = running.child.as_mut().unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{what} ended with {status}: {}", log());
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{what} does not start: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start(mut command: Command, directory: TempDir, port: u16, options: StoreOptions) -> Running {
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    command
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let child = Some(command.spawn().unwrap());
    Running { command, child, directory, port, options }
}

/// SeaweedFS with one bucket, `backstay`.
pub fn s3() -> Option<Running> {
    let weed = installed("seaweedfs/bin/weed")?;
    let directory = tempfile::tempdir().unwrap();
    // The second one may do what the policy of a bucket allows it, and nothing else.
    let identities = r#"{"identities": [{"name": "backstay", "actions": ["Admin"],
        "credentials": [{"accessKey": "backstay", "secretKey": "backstay-secret"}]},
        {"name": "host", "actions": [],
        "credentials": [{"accessKey": "host", "secretKey": "host-secret"}]}]}"#;
    std::fs::write(directory.path().join("s3.json"), identities).unwrap();
    let names = ["master", "volume", "filer", "s3"];
    let ports = free_ports::<8>();
    let mut command = Command::new(weed);
    command.args(["server", "-dir", ".", "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"]);
    command.args([
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.config",
        "s3.json",
        "-s3.autoCreateBucket=false",
    ]);
    command.args(["-master.volumeSizeLimitMB", "128", "-volume.max", "30"]);
    for (index, name) in names.iter().enumerate() {
        command.arg(format!("-{name}.port={}", ports[2 * index]));
        command.arg(format!("-{name}.port.grpc={}", ports[2 * index + 1]));
    }
    let [.., filer, _, s3, _] = ports;
    let options = StoreOptions {
        endpoint: Some(format!("http://127.0.0.1:{s3}")),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "backstay".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "backstay-secret".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    let mut running = start(command, directory, s3, options);
    // A bucket is a directory of the filer.
    until(&mut running, "weed", || {
        request(filer, "POST", "/buckets/backstay/", "").is_some_and(|(status, _)| status == 201)
    });
    until(&mut running, "weed's S3", || request(s3, "GET", "/", "").is_some());
    Some(running)
}

/// Azurite with one container, `backstay`.
pub fn azure() -> Option<Running> {
    let azurite = installed("azurite/node_modules/.bin/azurite-blob")?;
    let directory = tempfile::tempdir().unwrap();
    let [port] = free_ports();
    let (account, key) = ("backstay", "YmFja3N0YXktc2VjcmV0");
    let mut command = Command::new(azurite);
    command.env("AZURITE_ACCOUNTS", format!("{account}:{key}"));
    command.args(["--blobPort", &port.to_string(), "--location", ".", "--silent"]);
    command.args(["--disableTelemetry", "--skipApiVersionCheck"]);
    let options = StoreOptions {
        endpoint: Some(format!("http://127.0.0.1:{port}/{account}")),
        allow_http: true,
        variables: Some(vec![
            ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), account.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), key.to_owned()),
        ]),
        ..StoreOptions::default()
    };
    let mut running = start(command, directory, port, options);
    until(&mut running, "azurite", || request(port, "GET", "/", "").is_some());
    let made = running.admin().ask("PUT", "/backstay?restype=container", &[], "");
    assert_eq!(made.status, 201, "{}", made.body);
    Some(running)
}

/// Moto, another program that speaks S3, with one bucket, `backstay`. It keeps nothing when it ends.
pub fn other_s3() -> Option<Running> {
    let moto = installed("moto/bin/moto_server")?;
    let directory = tempfile::tempdir().unwrap();
    let [port] = free_ports();
    let mut command = Command::new(moto);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let options = StoreOptions {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "backstay".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "backstay-secret".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    let mut running = start(command, directory, port, options);
    until(&mut running, "moto", || request(port, "GET", "/", "").is_some());
    let made = running.admin().ask("PUT", "/backstay", &[], "");
    assert_eq!(made.status, 200, "{}", made.body);
    Some(running)
}

/// fake-gcs-server, an emulator of Google Cloud Storage, with one bucket, `backstay`. It knows no
/// condition but of uploads in one piece.
pub fn google() -> Option<Running> {
    let server = installed("fake-gcs/bin/fake-gcs-server")?;
    let directory = tempfile::tempdir().unwrap();
    let [port] = free_ports();
    let mut command = Command::new(server);
    command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string()]);
    command.args(["-backend", "filesystem", "-filesystem-root", "objects"]);
    command.args(["-public-host", &format!("127.0.0.1:{port}"), "-log-level", "error"]);
    let options = StoreOptions {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        ..StoreOptions::default()
    };
    std::fs::create_dir_all(directory.path().join("objects/backstay")).unwrap();
    let mut running = start(command, directory, port, options);
    until(&mut running, "fake-gcs-server", || {
        request(port, "GET", "/storage/v1/b/backstay", "").is_some_and(|(status, _)| status == 200)
    });
    Some(running)
}

impl Running {
    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again, on the same ports, with what it had stored.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Some(self.command.spawn().unwrap());
        let port = self.port;
        until(self, "the server", || {
            // Ready is who answers anything else than "not yet".
            request(port, "GET", "/", "").is_some_and(|(status, _)| status < 500)
        });
    }

    /// The value of a variable of its credentials.
    pub fn variable(&self, name: &str) -> Option<String> {
        let mut variables = self.options.variables.iter().flatten();
        variables.find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// What Google's emulator says of an object.
    pub fn about(&self, key: &str) -> serde_json::Value {
        let path = format!("/storage/v1/b/backstay/o/{}", key.replace('/', "%2F"));
        let (_, answer) = request(self.port, "GET", &path, "").unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Whoever may do everything there.
    pub fn admin(&self) -> Admin {
        let endpoint = self.options.endpoint.clone().unwrap();
        let variable = |name| self.variable(name);
        let who = match variable("AWS_ACCESS_KEY_ID") {
            Some(key) => Who::S3 { key, secret: variable("AWS_SECRET_ACCESS_KEY").unwrap() },
            None => Who::Azure {
                account: variable("AZURE_STORAGE_ACCOUNT_NAME").unwrap(),
                key: variable("AZURE_STORAGE_ACCOUNT_KEY").unwrap(),
            },
        };
        Admin { endpoint, who }
    }

    /// The same server, asked with other values of these variables.
    pub fn with(&self, variables: &[(&str, &str)]) -> StoreOptions {
        let mut options = self.options.clone();
        for (name, value) in variables {
            let known = options.variables.iter_mut().flatten().find(|(n, _)| n == name);
            known.unwrap().1 = (*value).to_owned();
        }
        options
    }
}
