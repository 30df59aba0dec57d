//! The known-bad variants of the gates. Each names one promise and breaks it; a gate that does not notice is no gate.
//! Compiled only with the cargo feature `sabotage`, so a released binary cannot hold any of this.

/// One way to be wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// L1: the balance is read, then debited, without a guard between the two.
    CheckThenDebit,
    /// L1: an allowance that is recalled for another replica is kept.
    KeepAllowances,
    /// L4: a stream is metered only when it ends well.
    MeterAtStreamEnd,
    /// L6: a failed attempt is billed beside the one that succeeded.
    BillEveryAttempt,
    /// C1: the end of an answer leaves before its settlement is durable.
    DoneBeforeCommit,
    /// G1: the accept loop has no timers.
    NoAcceptTimer,
    /// N3: an enrolment overwrites whatever record has its id.
    UnconditionalUpsert,
    /// P1: the bytes of a node's stream go to the client as they are.
    BytePassThrough,
    /// P2: the headers of a node's answer go to the client.
    ProxyHeaders,
    /// P5: an answer is taken without asking whose it is.
    NoOwnerCheck,
    /// U1: bodies are read as any JSON, then turned into the type.
    UntypedParsing,
    /// U2: fields that nobody knows go to the node.
    ExtraBody,
    /// G2: no limits on the frames of HTTP/2.
    NoFrameLimits,
    /// G5: a node that fails gets as much work as the others.
    NoEjection,
    /// P6: only probes decide who gets work; what work shows is ignored.
    ProbeOnlyRouting,
    /// G7: the process ends at the first signal, whatever runs.
    ImmediateExit,
    /// X1: request bodies are logged.
    BodyInLog,
    /// GR16: events are sent on in groups.
    CollectedEvents,
    /// X1: request bodies are told in traces.
    BodyInTrace,
    /// U3: a field that does not fit is refused with a status that is not documented.
    UndocumentedStatus,
    /// W3: a route for debugging was left in.
    ForgottenRoute,
    /// G9: whatever a request says of its address is believed.
    TrustAll,
    /// L4 on every path: what a node computed is billed, whether or not anybody got it.
    BillUndelivered,
    /// GR7: answers are not held against the shape that was asked for, and speech not against what sound is.
    UncheckedShape,
    /// GR31: a request that went on to another model is billed at the price of the first.
    KeepFirstPrice,
}

impl Sabotage {
    /// Every variant.
    pub const ALL: &'static [Self] = &[
        Self::CheckThenDebit,
        Self::KeepAllowances,
        Self::MeterAtStreamEnd,
        Self::BillEveryAttempt,
        Self::DoneBeforeCommit,
        Self::NoAcceptTimer,
        Self::UnconditionalUpsert,
        Self::BytePassThrough,
        Self::ProxyHeaders,
        Self::NoOwnerCheck,
        Self::UntypedParsing,
        Self::ExtraBody,
        Self::NoFrameLimits,
        Self::NoEjection,
        Self::ProbeOnlyRouting,
        Self::ImmediateExit,
        Self::BodyInLog,
        Self::CollectedEvents,
        Self::BodyInTrace,
        Self::UndocumentedStatus,
        Self::ForgottenRoute,
        Self::TrustAll,
        Self::BillUndelivered,
        Self::UncheckedShape,
        Self::KeepFirstPrice,
    ];

    /// The name as it stands in `CXMPUTE_SABOTAGE`, by which gates choose it for a gateway of their own process.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CheckThenDebit => "check_then_debit",
            Self::KeepAllowances => "keep_allowances",
            Self::MeterAtStreamEnd => "meter_at_stream_end",
            Self::BillEveryAttempt => "bill_every_attempt",
            Self::DoneBeforeCommit => "done_before_commit",
            Self::NoAcceptTimer => "no_accept_timer",
            Self::UnconditionalUpsert => "unconditional_upsert",
            Self::BytePassThrough => "byte_pass_through",
            Self::ProxyHeaders => "proxy_headers",
            Self::NoOwnerCheck => "no_owner_check",
            Self::UntypedParsing => "untyped_parsing",
            Self::ExtraBody => "extra_body",
            Self::NoFrameLimits => "no_frame_limits",
            Self::NoEjection => "no_ejection",
            Self::ProbeOnlyRouting => "probe_only_routing",
            Self::ImmediateExit => "immediate_exit",
            Self::BodyInLog => "body_in_log",
            Self::CollectedEvents => "collected_events",
            Self::BodyInTrace => "body_in_trace",
            Self::UndocumentedStatus => "undocumented_status",
            Self::ForgottenRoute => "forgotten_route",
            Self::TrustAll => "trust_all",
            Self::BillUndelivered => "bill_undelivered",
            Self::UncheckedShape => "unchecked_shape",
            Self::KeepFirstPrice => "keep_first_price",
        }
    }

    /// The variant with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|variant| variant.name() == name)
    }
}
