"""Finds mutation points in a C file of Xen: places where the code can be made wrong in one small way.

Only bodies of functions are looked at. What a macro definition, an initialiser of a static, a constant expression, a
case label or asm holds is left alone, and so is what the parser does not understand. Some points that are found do not
compile; only a compiler can tell.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import tree_sitter_c
from tree_sitter import Language, Node, Parser


class Kind(StrEnum):
    """What is made wrong at a point."""

    LEFT_OUT = "left out"  # a statement
    NEGATED = "negated"  # a condition, or an operand of && and ||
    SHIFTED = "shifted"  # a comparison, by one: < and <=, > and >=
    NO_ERROR = "no error"  # an error number made 0
    FLAG_DROPPED = "flag dropped"  # an operand of |
    SWAPPED = "swapped"  # an argument of a call with its neighbour


@dataclass(frozen=True, slots=True)
class Site:
    """A point in the text of a file. Offsets are in bytes; lines begin with 1.

    ``start`` to ``end`` is what stands behind the number. ``mutant`` is what takes the place of ``cut_from`` to
    ``cut_to``, as a programmer would write it.
    """

    kind: Kind
    start: int
    end: int
    cut_from: int
    cut_to: int
    mutant: bytes
    function: str
    line: int
    last_line: int
    same: tuple[bytes, bytes] = (b"", b"")  # two expressions that must be of one type


_SHIFTS = {"<": b"<=", "<=": b"<", ">": b">=", ">=": b">"}
# For the parser these words become blanks or a loop of C, of the same length, so that all offsets stay.
_ATTRIBUTES = re.compile(
    rb"\b(?:__init|__initdata|__initconst\w*|__hwdom_init\w*|__ro_after_init|__read_mostly|__packed|__must_check"
    rb"|__maybe_unused|__used|__cold|__iomem|cf_check|cf_clobber|always_inline|noinline|noreturn|asmlinkage|nonpriv"
    rb"|XENLOG_\w+|VTDPREFIX|PRI_?[a-z]\w*|(?<=[(] )struct|(?<=[(])struct(?= \w+[,)]))\b"
)
_LOOPS = re.compile(rb"\b\w*for_each\w*\b(?=\s*\()")
_GONE_AFTER_BOOT = re.compile(rb"\b__(?:init|hwdom_init)\b")
_FLAG = re.compile(rb"_*[A-Z]{2,}[A-Za-z0-9]*_\w+")
_ADDRESS = re.compile(rb"&\s*(\w+)\s*[,)]")
_GIVES = rb"(?<![\w.>])%s\s*(?:[-+*/|&^%]|<<|>>)?=(?!=)|&\s*%s\b"
_ERROR_NUMBER = re.compile(rb"-\s*E[A-Z0-9]{2,}")
# Calls that tell or check something, or order memory: without them a run that goes well is the same.
_IDLE_CALL = re.compile(
    r"[A-Z_0-9]+|\w*print\w*|\w*(?:perfc|trace|prefetch|barrier)\w*|\w*(?<![bc])lock(?:ed)?(?:_\w+)?|rcu_\w+|\w+_rcu"
    r"|(?:smp_)?[rw]?mb|cpu_relax|might_sleep|process_pending_softirqs|va_(?:start|end|copy)|\w*debug\w*|\w*_dump\w*|show_\w+"
)
_TAKES_TYPES = re.compile(
    r"_*typeof_*|_*offsetof|container_of|\w*_entry|__builtin_\w+|ARRAY_SIZE|x[mz]alloc\w*|BUILD_\w+"
)
_CONSTANT = re.compile(rb"[A-Z_0-9() \t|&~<>+*-]*|.*\b(?:IS_ENABLED|__builtin_\w+|BUILD_\w+|sizeof)\b.*", re.DOTALL)
_CLOSED = frozenset(  # nothing in these is looked at
    "preproc_def preproc_function_def preproc_call preproc_include gnu_asm_expression sizeof_expression ERROR "
    "array_declarator alignof_expression offsetof_expression enum_specifier struct_specifier union_specifier "
    "attribute_specifier attribute_declaration type_descriptor comment string_literal".split()
)
_BLOCKS = frozenset(  # the parser's errors in one statement of these say nothing of the others
    "compound_statement if_statement else_clause for_statement while_statement do_statement switch_statement "
    "case_statement labeled_statement preproc_if preproc_ifdef preproc_else preproc_elif function_definition "
    "translation_unit linkage_specification".split()
)
_JUMPS = frozenset("break_statement continue_statement goto_statement".split())


@functools.cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_c.language()))


def find(text: bytes) -> list[Site]:
    """The points of a file, outer ones before those within them."""
    blanked = _ATTRIBUTES.sub(lambda match: b" " * len(match[0]), text)
    blanked = _LOOPS.sub(lambda match: b"while".ljust(len(match[0])), blanked)
    tree = _parser().parse(blanked)
    found = [site for node in _functions(tree.root_node) for site in _Function(text, node).sites()]
    order = list(Kind)
    return sorted(found, key=lambda site: (site.start, -site.end, order.index(site.kind)))


def _functions(node: Node) -> Iterator[Node]:
    for child in node.named_children:
        if child.type == "function_definition":
            yield child
        elif child.type in _BLOCKS:
            yield from _functions(child)


def _text(node: Node | None) -> str:
    return (node.text or b"").decode(errors="replace") if node else ""


class _Function:
    """The points of one function."""

    def __init__(self, text: bytes, node: Node) -> None:
        self._whole, self._node = text, node
        self._body = node.child_by_field_name("body")
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type != "identifier":
            declarator = declarator.child_by_field_name("declarator")
        self._name = _text(declarator)

    def sites(self) -> list[Site]:
        if self._body is None or not self._name:
            return []
        head = self._whole[self._node.start_byte : self._body.start_byte]
        return [] if _GONE_AFTER_BOOT.search(head) else list(self._within(self._body))

    def _site(self, kind: Kind, node: Node, mutant: bytes, cut: tuple[int, int] | None = None) -> Iterator[Site]:
        """The point, unless its text cannot be written anew on one line."""
        text = self._whole[node.start_byte : node.end_byte]
        if node.has_error or b"//" in text or re.search(rb"^\s*#|\\\n", text, re.MULTILINE):
            return
        cut_from, cut_to = cut or (node.start_byte, node.end_byte)
        yield Site(
            kind,
            node.start_byte,
            node.end_byte,
            cut_from,
            cut_to,
            mutant,
            self._name,
            node.start_point[0] + 1,
            node.end_point[0] + 1,
        )

    def _raw(self, node: Node) -> bytes:
        return self._whole[node.start_byte : node.end_byte]

    # -- statements --------------------------------------------------------------------------------------------------

    def _within(self, node: Node) -> Iterator[Site]:
        if node.type in _CLOSED or (node.has_error and node.type not in _BLOCKS):
            return
        if node.type == "declaration" and self._is_static(node):
            return
        if node.type == "call_expression" and _IDLE_CALL.fullmatch(_text(node.child_by_field_name("function"))):
            return
        if node.type == "expression_statement" and self._can_be_left_out(node):
            yield from self._site(Kind.LEFT_OUT, node, b";")
        elif node.type in _JUMPS and not self._is_last_of_switch(node):
            yield from self._site(Kind.LEFT_OUT, node, b";")
        yield from self._expressions(node)
        skipped = node.child_by_field_name("value") if node.type == "case_statement" else None
        for child in node.named_children:
            if node.type == "for_statement" and child in (node.child_by_field_name("update"),):
                continue
            if skipped is not None and child == skipped:
                continue
            yield from self._within(child)

    @staticmethod
    def _is_static(node: Node) -> bool:
        return any(child.type == "storage_class_specifier" and _text(child) == "static" for child in node.children)

    def _can_be_left_out(self, statement: Node) -> bool:
        """Whether the statement does something, and its value is not that of a whole block (GNU's ``({ ... })``)."""
        outer = statement.parent
        if outer is not None and outer.type == "compound_statement":
            above = outer.parent
            is_value = above is not None and above.type == "parenthesized_expression"
            if is_value and outer.named_children[-1] == statement:
                return False
        inner = statement.named_children[0] if statement.named_children else None
        if inner is None or self._is_first_value(inner):
            return False
        if inner.type in ("assignment_expression", "update_expression"):
            return True
        return inner.type == "call_expression" and not _IDLE_CALL.fullmatch(
            _text(inner.child_by_field_name("function"))
        )

    def _is_first_value(self, node: Node) -> bool:
        """Whether a variable gets its first value here. Without it there would be none, and the compiler may choose."""
        if node.type == "assignment_expression":
            left = node.child_by_field_name("left")
            given = {_text(left)} if left is not None and left.type == "identifier" else set()
        else:
            given = {match[1].decode() for match in _ADDRESS.finditer(self._raw(node))}
        empty = {name for name in given if name in self._declared and self._declared[name] <= node.start_byte}
        if not empty:
            return False
        assert self._body is not None
        text = self._whole[self._body.start_byte : node.start_byte]
        return any(not re.search(_GIVES.replace(b"%s", re.escape(name.encode())), text) for name in empty)

    @functools.cached_property
    def _declared(self) -> dict[str, int]:
        """The variables of the function that are declared without a value, with the place."""
        found: dict[str, int] = {}
        left = [self._body] if self._body is not None else []
        while left:
            node = left.pop()
            if node.type == "declaration":
                for child in node.children_by_field_name("declarator"):
                    while child.type == "pointer_declarator" and (within := child.child_by_field_name("declarator")):
                        child = within
                    if child.type == "identifier":
                        found[_text(child)] = child.start_byte
            left += node.named_children
        return found

    @staticmethod
    def _is_last_of_switch(jump: Node) -> bool:
        """Whether a ``break`` ends the last case: without it nothing changes."""
        case = jump.parent
        if jump.type != "break_statement" or case is None or case.type != "case_statement":
            return False
        return case.next_named_sibling is None and case.named_children[-1] == jump

    # -- expressions -------------------------------------------------------------------------------------------------

    def _expressions(self, node: Node) -> Iterator[Site]:
        match node.type:
            case "if_statement" | "conditional_expression":
                is_value = node.type == "conditional_expression" and node.child_by_field_name("consequence") is None
                if is_value:  # GNU's `a ?: b`
                    return
                if condition := node.child_by_field_name("condition"):
                    inner = condition.named_children[0] if condition.type == "parenthesized_expression" else condition
                    yield from self._negated(inner)
            case "binary_expression":
                yield from self._binary(node)
            case "unary_expression":
                if _ERROR_NUMBER.fullmatch(self._raw(node)) and self._is_given_on(node):
                    yield from self._site(Kind.NO_ERROR, node, b"0")
            case "call_expression":
                yield from self._swapped(node)

    def _negated(self, node: Node) -> Iterator[Site]:
        text = self._raw(node)
        if node.type not in ("comment", "assignment_expression") and not _CONSTANT.fullmatch(text):
            yield from self._site(Kind.NEGATED, node, b"!(" + text + b")")

    def _binary(self, node: Node) -> Iterator[Site]:
        operator = _text(node.child_by_field_name("operator"))
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        if left is None or right is None:
            return
        if operator in ("&&", "||"):
            for one in (left, right):
                inner = one
                while inner.type == "parenthesized_expression" and inner.named_children:
                    inner = inner.named_children[0]
                if inner.type != "binary_expression" or _text(inner.child_by_field_name("operator")) not in (
                    "&&",
                    "||",
                ):
                    yield from self._negated(one)
        elif operator in _SHIFTS and not _CONSTANT.fullmatch(self._raw(node)):
            sign = node.child_by_field_name("operator")
            assert sign is not None
            yield from self._site(Kind.SHIFTED, node, _SHIFTS[operator], (sign.start_byte, sign.end_byte))
        elif operator == "|":
            if _FLAG.fullmatch(self._raw(right)):
                yield from self._site(Kind.FLAG_DROPPED, right, b"", (left.end_byte, right.end_byte))
            if _FLAG.fullmatch(self._raw(left)):
                yield from self._site(Kind.FLAG_DROPPED, left, b"", (left.start_byte, right.start_byte))

    @staticmethod
    def _is_given_on(node: Node) -> bool:
        """Whether an error number is returned or assigned, and not compared."""
        above = node.parent
        while above is not None and above.type in ("parenthesized_expression", "conditional_expression"):
            above = above.parent
        return above is not None and above.type in ("return_statement", "assignment_expression", "init_declarator")

    def _swapped(self, node: Node) -> Iterator[Site]:
        name = _text(node.child_by_field_name("function"))
        arguments = node.child_by_field_name("arguments")
        if arguments is None or _IDLE_CALL.fullmatch(name) or _TAKES_TYPES.fullmatch(name):
            return
        given = [child for child in arguments.named_children if child.type != "comment"]
        for first, second in zip(given, given[1:], strict=False):
            one, two = self._raw(first), self._raw(second)
            if not (self._is_plain(first) and self._is_plain(second)) or one == two:
                continue
            between = self._whole[first.end_byte : second.start_byte]
            cut = (first.start_byte, second.end_byte)
            for site in self._site(Kind.SWAPPED, node, two + between + one, cut):
                yield replace(site, same=(one, two))

    def _is_plain(self, node: Node) -> bool:
        """Whether an argument is a variable or a part of one: it has no effect, and is no constant."""
        while node.type in ("field_expression", "pointer_expression", "subscript_expression"):
            inner = node.child_by_field_name("argument")
            if inner is None:
                return False
            node = inner
        return node.type == "identifier" and not self._raw(node).isupper()
