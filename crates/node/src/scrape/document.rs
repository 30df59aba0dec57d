//! Parsing under bounds. A page is fed to the parser in small pieces; when the tree gets too deep or too large, the rest
//! of the page is not read. Nothing later walks a tree that was not bounded here.

use std::borrow::Cow;
use std::cell::Cell;

use dom_query::{Document, NodeId};
use html5ever::interface::tree_builder::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::{Attribute, ParseOpts, QualName, parse_document};

/// Levels of a tree. Browsers stop nesting at the same depth.
pub const DEPTH_LIMIT: usize = 512;
/// Nodes of a tree: several times what the largest ordinary pages have.
pub const NODES_LIMIT: usize = 200_000;
/// What is fed at a time: the most by which the bounds can be passed.
const PIECE_BYTES: usize = 1024;

/// A parsed page.
pub struct Parsed {
    /// The tree.
    pub document: Document,
    /// Why the rest of the page was not read, if it was not.
    pub cut: Option<&'static str>,
}

/// Parses a page, or as much of it as the bounds allow.
#[must_use]
pub fn parse(html: &str) -> Parsed {
    let sink = Bounded { document: Document::default(), too_deep: Cell::new(false) };
    let mut options = ParseOpts::default();
    options.tree_builder.scripting_enabled = false;
    let mut parser = parse_document(sink, options);
    let mut cut = None;
    let mut rest = html;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        parser.process(StrTendril::from(piece));
        rest = after;
        let sink = &parser.tokenizer.sink.sink;
        cut = match (sink.too_deep.get(), sink.document.tree.len() > NODES_LIMIT) {
            (true, _) => Some("its elements are nested too deeply"),
            (_, true) => Some("it has too many elements"),
            _ => continue,
        };
        break;
    }
    Parsed { document: parser.finish(), cut }
}

/// A tree that notices how deep it gets.
struct Bounded {
    document: Document,
    too_deep: Cell<bool>,
}

impl Bounded {
    fn look(&self, parent: &NodeId) {
        // Counting stops at the limit, so that looking costs little however deep the tree is.
        if self.document.tree.ancestor_ids_of_it(parent, Some(DEPTH_LIMIT)).count() >= DEPTH_LIMIT {
            self.too_deep.set(true);
        }
    }
}

impl TreeSink for Bounded {
    type Handle = NodeId;
    type Output = Document;
    type ElemName<'a> = <Document as TreeSink>::ElemName<'a>;

    fn finish(self) -> Document {
        self.document
    }

    // A hostile page has millions of errors, and nobody reads them.
    fn parse_error(&self, _message: Cow<'static, str>) {}

    fn get_document(&self) -> NodeId {
        self.document.get_document()
    }

    fn elem_name<'a>(&'a self, target: &'a NodeId) -> Self::ElemName<'a> {
        self.document.elem_name(target)
    }

    fn create_element(&self, name: QualName, attributes: Vec<Attribute>, flags: ElementFlags) -> NodeId {
        self.document.create_element(name, attributes, flags)
    }

    fn create_comment(&self, text: StrTendril) -> NodeId {
        self.document.create_comment(text)
    }

    fn create_pi(&self, target: StrTendril, data: StrTendril) -> NodeId {
        self.document.create_pi(target, data)
    }

    fn append(&self, parent: &NodeId, child: NodeOrText<NodeId>) {
        self.look(parent);
        self.document.append(parent, child);
    }

    fn append_based_on_parent_node(&self, element: &NodeId, previous: &NodeId, child: NodeOrText<NodeId>) {
        self.look(element);
        self.document.append_based_on_parent_node(element, previous, child);
    }

    fn append_doctype_to_document(&self, name: StrTendril, public_id: StrTendril, system_id: StrTendril) {
        self.document.append_doctype_to_document(name, public_id, system_id);
    }

    fn get_template_contents(&self, target: &NodeId) -> NodeId {
        self.document.get_template_contents(target)
    }

    fn same_node(&self, one: &NodeId, other: &NodeId) -> bool {
        one == other
    }

    fn set_quirks_mode(&self, mode: QuirksMode) {
        self.document.set_quirks_mode(mode);
    }

    fn append_before_sibling(&self, sibling: &NodeId, node: NodeOrText<NodeId>) {
        self.look(sibling);
        self.document.append_before_sibling(sibling, node);
    }

    fn add_attrs_if_missing(&self, target: &NodeId, attributes: Vec<Attribute>) {
        self.document.add_attrs_if_missing(target, attributes);
    }

    fn remove_from_parent(&self, target: &NodeId) {
        self.document.remove_from_parent(target);
    }

    fn reparent_children(&self, node: &NodeId, new_parent: &NodeId) {
        self.document.reparent_children(node, new_parent);
    }

    fn is_mathml_annotation_xml_integration_point(&self, handle: &NodeId) -> bool {
        self.document.is_mathml_annotation_xml_integration_point(handle)
    }
}
