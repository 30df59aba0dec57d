//! A Docker daemon and a registry of the test's own: nothing of the machine's Docker is touched, no bridge, no firewall rule,
//! no forwarding. Both end with their test, and what they mounted and grouped goes with them.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListVolumesOptions,
    PushImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;

/// Set where no daemon can run; the suite shows the skip.
const WITHOUT: &str = "CXMPUTE_TEST_WITHOUT_DOCKER";
const LONG: Duration = Duration::from_secs(60);
/// The suite of the whole house builds it, too.
const ENGINE: &str = include_str!("../../container/engine.rs");

/// What the registry wants once it is guarded, and what it knows of it.
pub const LOGIN: &str = "owner:open sesame";
const USERS: &str = "owner:$2b$05$cxmputecxmputecxmputeuK89BvV/jpx1qlCJA/ITK/AnKUHYPStW\n";

pub struct Ground {
    pub docker: Docker,
    pub socket: PathBuf,
    /// `127.0.0.1:PORT`.
    pub registry: String,
    registry_process: Option<Program>,
    /// Whether the registry wants the login.
    guarded: bool,
    // Ends before the folder goes.
    _daemon: Program,
    _traces: Traces,
    dir: tempfile::TempDir,
}

/// A program that is asked to end, and waited for, when its test ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            if let Ok(Some(_)) = self.0.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        assert!(std::thread::panicking(), "process {pid} did not end when asked");
    }
}

/// What a daemon leaves outside of its own folders: its group of processes, and a key that nobody asked for.
struct Traces {
    group: String,
    key: Option<&'static Path>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        let controllers =
            std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|at| at.path());
        for group in controllers.chain([PathBuf::from("/sys/fs/cgroup")]).map(|at| at.join(&self.group)) {
            // Refused unless it is empty.
            let _ = std::fs::remove_dir(group);
        }
        if let Some(key) = self.key {
            let _ = std::fs::remove_file(key);
        }
    }
}

impl Ground {
    /// `None` where the suite was told that no daemon can run here.
    pub async fn start() -> Option<Self> {
        if std::env::var_os(WITHOUT).is_some() {
            return None;
        }
        assert!(nix::unistd::geteuid().is_root(), "a daemon needs root; set {WITHOUT}=1 to go without");
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let key = Path::new("/etc/docker/key.json");
        let name = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let traces = Traces { group: format!("cxmpute-test-{name}"), key: (!key.exists()).then_some(key) };
        let log = dir.path().join("daemon.log");
        let daemon = Command::new("setpriv")
            // Ends with this process, and takes its mounts along.
            .args(["--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private", "dockerd"])
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip-forward=false",
                "--cgroup-parent",
                &traces.group,
            ])
            .args(["--data-root", &dir.path().join("data").to_string_lossy()])
            .args(["--exec-root", &dir.path().join("exec").to_string_lossy()])
            .args(["--pidfile", &dir.path().join("pid").to_string_lossy()])
            .args(["-H", &format!("unix://{}", socket.display())])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .expect("dockerd is Debian's docker.io");
        let daemon = Program(daemon);
        let docker = within(LONG, || async {
            let docker =
                Docker::connect_with_unix(&socket.to_string_lossy(), 60, API_DEFAULT_VERSION).ok()?;
            docker.negotiate_version().await.ok()
        })
        .await;
        let docker = docker.unwrap_or_else(|| panic!("{}", std::fs::read_to_string(&log).unwrap()));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let registry = format!("127.0.0.1:{port}");
        let mut ground = Self {
            docker,
            socket,
            registry,
            registry_process: None,
            guarded: false,
            _daemon: daemon,
            _traces: traces,
            dir,
        };
        ground.open_registry().await;
        ground.build_engine();
        Some(ground)
    }

    /// Starts the registry, again at the same address and with what it held.
    pub async fn open_registry(&mut self) {
        let config = self.dir.path().join("registry.yml");
        let guard = if self.guarded {
            let users = self.dir.path().join("users");
            std::fs::write(&users, USERS).unwrap();
            format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", users.display())
        } else {
            String::new()
        };
        let text = format!(
            "{guard}version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {}}}\n",
            self.registry_folder().display(),
            self.registry
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(self.dir.path().join("registry.log")).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "docker-registry", "serve", &config.to_string_lossy()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is a package of Debian");
        self.registry_process = Some(Program(process));
        let address = self.registry.clone();
        within(LONG, || async { TcpStream::connect(&address).ok() }).await.expect("the registry listens");
    }

    /// Starts the registry again, so that it gives nothing without [`LOGIN`].
    pub async fn guard_registry(&mut self) {
        self.close_registry();
        self.guarded = true;
        self.open_registry().await;
    }

    /// Ends the registry; what it holds stays.
    pub fn close_registry(&mut self) {
        self.registry_process = None;
    }

    pub fn registry_folder(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    /// The engine, static, so that an image needs nothing else.
    fn build_engine(&self) {
        let source = self.dir.path().join("engine.rs");
        std::fs::write(&source, ENGINE).unwrap();
        std::fs::create_dir_all(self.dir.path().join("image")).unwrap();
        let done = Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "strip=symbols",
                "-o",
            ])
            .arg(self.dir.path().join("image/engine"))
            .arg(source)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Builds an image from nothing but the engine and `filler` random bytes, pushes it, and forgets it here: whoever wants
    /// it has to pull it. Gives `REGISTRY/REPOSITORY@sha256:…`.
    pub async fn push(&self, name: &str, filler: u64, change: &str) -> String {
        let folder = self.dir.path().join("image");
        let random = std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), filler);
        let mut file = std::fs::File::create(folder.join("filler")).unwrap();
        std::io::copy(&mut { random }, &mut file).unwrap();
        self.push_folder(name, &folder, change).await
    }

    /// The same from a program of this machine and the libraries that it loads.
    pub async fn push_program(&self, name: &str, program: &Path) -> String {
        let folder = self.dir.path().join(name.replace('/', "-"));
        let told = Command::new("ldd").arg(program).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let libraries = told.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
        for library in libraries {
            let place = folder.join(library.strip_prefix("/").unwrap());
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(library, place).unwrap();
        }
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(program, folder.join(program.file_name().unwrap())).unwrap();
        self.push_folder(name, &folder, "").await
    }

    async fn push_folder(&self, name: &str, folder: &Path, change: &str) -> String {
        let tar = Command::new("tar").args(["-c", "."]).current_dir(folder).output().unwrap();
        assert!(tar.status.success());
        let repository = format!("{}/{name}", self.registry);
        let mut options = CreateImageOptionsBuilder::default().from_src("-").repo("made-here").tag("1");
        if !change.is_empty() {
            options = options.changes(vec![change.to_owned()]);
        }
        let body = bollard::body_full(tar.stdout.into());
        let mut steps = std::pin::pin!(self.docker.create_image(Some(options.build()), Some(body), None));
        while let Some(step) = steps.next().await {
            step.unwrap();
        }
        let tag = TagImageOptionsBuilder::default().repo(&repository).tag("1").build();
        self.docker.tag_image("made-here:1", Some(tag)).await.unwrap();
        let push = PushImageOptionsBuilder::default().tag("1").build();
        let nobody = bollard::auth::DockerCredentials::default();
        let mut steps = std::pin::pin!(self.docker.push_image(&repository, Some(push), Some(nobody)));
        while let Some(step) = steps.next().await {
            step.unwrap();
        }
        let image = self.docker.inspect_image(&format!("{repository}:1")).await.unwrap();
        let reference =
            image.repo_digests.unwrap().into_iter().find(|known| known.starts_with(&repository)).unwrap();
        let force = RemoveImageOptionsBuilder::default().force(true).build();
        self.docker.remove_image(&image.id.unwrap(), Some(force), None).await.unwrap();
        assert_eq!(self.images().await, Vec::<String>::new(), "the image has to be pulled");
        reference
    }

    /// Ids of all containers, running or not.
    pub async fn containers(&self) -> Vec<String> {
        let all = ListContainersOptionsBuilder::default().all(true).build();
        let found = self.docker.list_containers(Some(all)).await.unwrap();
        found.into_iter().filter_map(|container| container.id).collect()
    }

    /// Digests of all images.
    pub async fn images(&self) -> Vec<String> {
        let all = ListImagesOptionsBuilder::default().all(true).build();
        let found = self.docker.list_images(Some(all)).await.unwrap();
        found
            .into_iter()
            .flat_map(|image| if image.repo_digests.is_empty() { vec![image.id] } else { image.repo_digests })
            .collect()
    }

    /// Nothing that a node made may be left.
    pub async fn is_clean(&self) {
        assert_eq!(self.containers().await, Vec::<String>::new(), "containers are left over");
        assert_eq!(self.images().await, Vec::<String>::new(), "images are left over");
        let volumes = self.docker.list_volumes(None::<ListVolumesOptions>).await.unwrap();
        assert!(volumes.volumes.unwrap_or_default().is_empty(), "volumes are left over");
    }
}

/// Tries until something is there.
async fn within<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    mut attempt: impl FnMut() -> F,
) -> Option<T> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(found) = attempt().await {
            return Some(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
