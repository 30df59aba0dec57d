//! What every server of a model has in common before it starts: its files, its room, its door, what it may see.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cxmpute_runtime::Secret;
use cxmpute_runtime::confine::{Sockets, Terms};
use cxmpute_runtime::once::Sandbox;
use cxmpute_wire::control::DesiredService;

use super::{AdapterError, Child, Endpoint, Profile, Server, files};
use crate::supervise::Surroundings;

/// A server that is about to start.
pub(super) struct Start<'a> {
    around: &'a Surroundings,
    desired: &'a DesiredService,
    program: PathBuf,
    models: PathBuf,
    room: PathBuf,
    keeps_network: bool,
    /// The model's own file.
    pub file: PathBuf,
    /// Requests at a time.
    pub slots: u16,
    /// Its arguments so far.
    pub arguments: Vec<String>,
    /// Its variables so far.
    pub environment: Vec<(&'static str, Secret<String>)>,
}

/// What differs between servers once they are about to start.
pub(super) struct Finish {
    pub profile: Profile,
    pub endpoint: Endpoint,
    pub queue: u16,
    pub weight_bytes: u64,
    /// Whether this node hashes the model's file, for the server does not.
    pub hashes: bool,
    /// What it reads beside the files of the plan and the folder of its program.
    pub readable: Vec<PathBuf>,
    pub sockets: Sockets,
    pub memory: Option<u64>,
    pub files: Option<u64>,
}

impl<'a> Start<'a> {
    /// Finds the files of the plan, below `folder` where they were placed for it.
    ///
    /// # Errors
    /// A file is missing or lies outside the model directory.
    pub fn new(
        around: &'a Surroundings,
        folder: Option<&Path>,
        desired: &'a DesiredService,
        program: PathBuf,
    ) -> Result<Self, AdapterError> {
        let config = &around.config;
        let models = folder.map_or_else(|| config.models_dir(), Path::to_owned);
        let room = crate::place::engine_room(&config.data_dir);
        let own = room.display().to_string();
        // What it keeps and compiles goes with it.
        let environment = vec![("HOME", Secret::new(own.clone())), ("TMPDIR", Secret::new(own))];
        Ok(Self {
            around,
            desired,
            program,
            room,
            keeps_network: false,
            file: files::model(&models, desired)?,
            models,
            slots: super::slots(desired, config.engine.slots),
            arguments: Vec::new(),
            environment,
        })
    }

    /// The directory of the model's file.
    pub fn folder(&self) -> PathBuf {
        self.file.parent().unwrap_or(&self.file).to_owned()
    }

    /// A flag with its value.
    pub fn push(&mut self, flag: &str, value: impl Into<String>) {
        self.arguments.extend([flag.to_owned(), value.into()]);
    }

    /// A variable that is no secret.
    pub fn tell(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, Secret::new(value.to_owned())));
    }

    /// Shows it the accelerators of the plan and no others.
    pub fn show_cards(&mut self) {
        let indexes: Vec<String> = self.desired.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
        // Numbers of cards in the order of the diagnostics.
        self.tell("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        self.tell("CUDA_VISIBLE_DEVICES", &indexes.join(","));
    }

    /// Lets it keep the network: it works with other machines.
    pub fn keep_network(&mut self) {
        self.keeps_network = true;
    }

    /// Its socket, which lies in its room.
    pub fn socket(&self) -> PathBuf {
        crate::place::socket_in(&self.room)
    }

    /// Makes it listen on its socket by this flag, or, where its version has none, on a port of the loopback behind a key
    /// in this variable; it keeps the network then.
    pub fn listen(&mut self, socket_flag: Option<&str>, key: &'static str) -> Endpoint {
        if let Some(flag) = socket_flag {
            let socket = self.socket();
            self.push(flag, socket.display().to_string());
            return Endpoint::Unix(socket);
        }
        self.keeps_network = true;
        let (port, word) = super::loopback_door();
        self.push("--host", "127.0.0.1");
        self.push("--port", port.to_string());
        self.tell(key, &word);
        Endpoint::http(&format!("http://127.0.0.1:{port}/v1"), Some(Arc::new(Secret::new(word))))
    }

    /// The child, confined as far as this system can.
    pub fn child(self, finish: Finish) -> Child {
        let socket = self.socket();
        let Self {
            around,
            desired,
            program,
            models,
            room,
            keeps_network,
            file,
            slots,
            arguments,
            environment,
        } = self;
        let config = &around.config;
        let mut readable = finish.readable;
        readable.push(super::beside(&program, config));
        for file in desired.files.iter().filter_map(|file| files::below(&models, file).ok()) {
            // A link, and where it leads.
            readable.extend(file.canonicalize());
            readable.push(file);
        }
        readable.extend(config.engines.readable.iter().cloned());
        readable.retain(|path| path.is_absolute());
        let terms = Terms {
            hidden: super::private_places(config),
            readable,
            room: Some(room.clone()),
            network: keeps_network,
            sockets: if keeps_network { finish.sockets.max(Sockets::Internet) } else { finish.sockets },
            memory: finish.memory,
            files: finish.files,
            ..Terms::default()
        };
        let confiner = around.confiner.as_ref();
        let sandbox = confiner.map_or_else(Sandbox::default, |confiner| confiner.sandbox(&terms));
        let server = Server {
            profile: finish.profile,
            endpoint: finish.endpoint,
            model: desired.model.clone(),
            slots,
            queue: finish.queue,
            weight_bytes: finish.weight_bytes,
            model_file: finish.hashes.then_some(file),
        };
        Child { server, program, arguments, environment, socket: Some(socket), room: Some(room), sandbox }
    }
}
