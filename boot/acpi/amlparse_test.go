package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// A node is an object of the namespace that the AML under test declares.
type node struct {
	kind     string // "Device", "Name", "Method", "OpRegion", "Field"
	value    any    // a Name's: uint64, string, []byte, []any
	body     []byte // a Method's
	args     int
	children map[string]*node
	order    []string
}

var errParse = errors.New("bad AML")

// amlReader reads the part of AML that a DSDT declares things with. Methods are
// kept as bytes; their statements are walked by checkStatements.
type amlReader struct{ b []byte }

func (r *amlReader) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.b) {
		return nil, fmt.Errorf("%w: %d bytes wanted, %d left", errParse, n, len(r.b))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b, nil
}

func (r *amlReader) byte() (byte, error) {
	b, err := r.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// pkgLength returns the value and how many bytes encode it.
func (r *amlReader) pkgLength() (v, own int, err error) {
	lead, err := r.byte()
	if err != nil {
		return 0, 0, err
	}
	extra := int(lead >> 6)
	if extra == 0 {
		return int(lead & 0x3f), 1, nil
	}
	if lead&0x30 != 0 {
		return 0, 0, fmt.Errorf("%w: reserved bits of PkgLength", errParse)
	}
	more, err := r.take(extra)
	if err != nil {
		return 0, 0, err
	}
	v = int(lead & 0xf)
	for i, m := range more {
		v |= int(m) << (4 + 8*i)
	}
	return v, 1 + extra, nil
}

// pkg reads a PkgLength and gives a reader of what it spans.
func (r *amlReader) pkg() (*amlReader, error) {
	v, own, err := r.pkgLength()
	if err != nil {
		return nil, err
	}
	b, err := r.take(v - own)
	return &amlReader{b}, err
}

func (r *amlReader) name() (string, error) {
	var prefix strings.Builder
	for len(r.b) > 0 && (r.b[0] == '\\' || r.b[0] == '^') {
		prefix.WriteByte(r.b[0])
		r.b = r.b[1:]
	}
	lead, err := r.byte()
	if err != nil {
		return "", err
	}
	n := 1
	switch lead {
	case 0:
		return prefix.String(), nil
	case 0x2e:
		n = 2
	case 0x2f:
		c, err := r.byte()
		if err != nil {
			return "", err
		}
		n = int(c)
	default:
		r.b = append([]byte{lead}, r.b...)
	}
	var segs []string
	for range n {
		s, err := r.take(4)
		if err != nil {
			return "", err
		}
		for i, c := range s {
			if !(c == '_' || 'A' <= c && c <= 'Z' || i > 0 && '0' <= c && c <= '9') {
				return "", fmt.Errorf("%w: name %q", errParse, s)
			}
		}
		segs = append(segs, strings.TrimRight(string(s), "_"))
	}
	return prefix.String() + strings.Join(segs, "."), nil
}

func (r *amlReader) data() (any, error) {
	op, err := r.byte()
	if err != nil {
		return nil, err
	}
	width := map[byte]int{0x0a: 1, 0x0b: 2, 0x0c: 4, 0x0e: 8}[op]
	switch {
	case op == 0 || op == 1:
		return uint64(op), nil
	case op == 0xff:
		return ^uint64(0), nil
	case width > 0:
		b, err := r.take(width)
		if err != nil {
			return nil, err
		}
		var full [8]byte
		copy(full[:], b)
		return binary.LittleEndian.Uint64(full[:]), nil
	case op == 0x0d:
		for i, c := range r.b {
			if c == 0 {
				s := string(r.b[:i])
				r.b = r.b[i+1:]
				return s, nil
			}
		}
		return nil, fmt.Errorf("%w: endless string", errParse)
	case op == 0x11:
		p, err := r.pkg()
		if err != nil {
			return nil, err
		}
		n, err := p.data()
		if err != nil {
			return nil, err
		}
		if n != uint64(len(p.b)) {
			return nil, fmt.Errorf("%w: buffer of %v bytes with %d", errParse, n, len(p.b))
		}
		return p.b, nil
	case op == 0x12:
		p, err := r.pkg()
		if err != nil {
			return nil, err
		}
		n, err := p.byte()
		if err != nil {
			return nil, err
		}
		list := []any{}
		for range n {
			v, err := p.data()
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		if len(p.b) != 0 {
			return nil, fmt.Errorf("%w: %d bytes after a package's last element", errParse, len(p.b))
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: opcode %#x is no data", errParse, op)
}

// terms reads declarations into n until the end.
func (r *amlReader) terms(root, n *node) error {
	for len(r.b) > 0 {
		op, err := r.byte()
		if err != nil {
			return err
		}
		if op == 0x5b {
			ext, err := r.byte()
			if err != nil {
				return err
			}
			op = ext | 0x80
			if err := r.extended(op, root, n); err != nil {
				return err
			}
			continue
		}
		switch op {
		case 0x08:
			path, err := r.name()
			if err != nil {
				return err
			}
			v, err := r.data()
			if err != nil {
				return fmt.Errorf("name %s: %w", path, err)
			}
			if err := n.add(root, path, &node{kind: "Name", value: v}); err != nil {
				return err
			}
		case 0x10:
			p, err := r.pkg()
			if err != nil {
				return err
			}
			path, err := p.name()
			if err != nil {
				return err
			}
			if path != `\_SB` {
				return fmt.Errorf("%w: scope %s", errParse, path)
			}
			sb := root.children["_SB"]
			if sb == nil {
				sb = &node{kind: "Scope"}
				if err := root.add(root, "_SB", sb); err != nil {
					return err
				}
			}
			if err := p.terms(root, sb); err != nil {
				return err
			}
		case 0x14:
			p, err := r.pkg()
			if err != nil {
				return err
			}
			path, err := p.name()
			if err != nil {
				return err
			}
			flags, err := p.byte()
			if err != nil {
				return err
			}
			m := &node{kind: "Method", args: int(flags & 7), body: p.b}
			if err := n.add(root, path, m); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: opcode %#x", errParse, op)
		}
	}
	return nil
}

func (r *amlReader) extended(op byte, root, n *node) error {
	switch op {
	case 0x82:
		p, err := r.pkg()
		if err != nil {
			return err
		}
		path, err := p.name()
		if err != nil {
			return err
		}
		d := &node{kind: "Device"}
		if err := n.add(root, path, d); err != nil {
			return err
		}
		return p.terms(root, d)
	case 0x80:
		path, err := r.name()
		if err != nil {
			return err
		}
		space, err := r.byte()
		if err != nil {
			return err
		}
		off, err := r.data()
		if err != nil {
			return err
		}
		size, err := r.data()
		if err != nil {
			return err
		}
		return n.add(root, path, &node{kind: "OpRegion", value: []any{space, off, size}})
	case 0x81:
		p, err := r.pkg()
		if err != nil {
			return err
		}
		region, err := p.name()
		if err != nil {
			return err
		}
		if n.children[region] == nil {
			return fmt.Errorf("%w: field of unknown region %s", errParse, region)
		}
		if _, err := p.byte(); err != nil {
			return err
		}
		for len(p.b) > 0 {
			unit := ""
			if p.b[0] == 0 {
				p.b = p.b[1:]
			} else if unit, err = p.name(); err != nil {
				return err
			}
			bits, _, err := p.pkgLength()
			if err != nil {
				return err
			}
			if unit == "" {
				continue
			}
			if err := n.add(root, unit, &node{kind: "Field", value: bits}); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%w: extended opcode %#x", errParse, op)
}

func (n *node) add(root *node, path string, c *node) error {
	if p, ok := strings.CutPrefix(path, `\`); ok {
		path, n = p, root
	}
	if path == "" || strings.ContainsAny(path, `.^\`) {
		return fmt.Errorf("%w: declaration of %q", errParse, path)
	}
	if n.children == nil {
		n.children = map[string]*node{}
	}
	if _, ok := n.children[path]; ok {
		return fmt.Errorf("%w: %s declared twice", errParse, path)
	}
	n.children[path] = c
	n.order = append(n.order, path)
	return nil
}

// parseAML reads a DSDT's body.
func parseAML(b []byte) (*node, error) {
	root := &node{kind: "Root"}
	r := &amlReader{append([]byte(nil), b...)}
	return root, r.terms(root, root)
}

// A resource is one decoded descriptor.
type resource struct {
	kind       string // "io", "irq", "mem", "bus"
	base, size uint64
	producer   bool
}

// parseResources decodes a resource template.
func parseResources(b []byte) ([]resource, error) {
	var list []resource
	le := binary.LittleEndian
	for len(b) > 0 {
		tag, n := b[0], 0
		if tag&0x80 == 0 {
			n = 1 + int(tag&7)
		} else if len(b) >= 3 {
			n = 3 + int(le.Uint16(b[1:]))
		}
		if n == 0 || n > len(b) {
			return nil, fmt.Errorf("%w: descriptor %#x", errParse, tag)
		}
		d := b[:n]
		b = b[n:]
		space := func(kind map[byte]string, width int) error {
			if n != 6+5*width {
				return fmt.Errorf("%w: address space of %d bytes", errParse, n)
			}
			var f [5]uint64
			for i := range f {
				var full [8]byte
				copy(full[:], d[6+i*width:6+(i+1)*width])
				f[i] = le.Uint64(full[:])
			}
			if f[0] != 0 || f[3] != 0 || f[2]-f[1]+1 != f[4] || f[2] < f[1] || d[4]&^1 != 0xc {
				return fmt.Errorf("%w: address space %x", errParse, d)
			}
			list = append(list, resource{kind[d[3]], f[1], f[4], d[4]&1 == 0})
			return nil
		}
		var err error
		kinds := map[byte]string{0: "mem", 2: "bus"}
		switch tag {
		case 0x79:
			if n != 2 || len(b) != 0 {
				return nil, fmt.Errorf("%w: end tag", errParse)
			}
			return list, nil
		case 0x47:
			if d[1] != 1 || le.Uint16(d[2:]) != le.Uint16(d[4:]) {
				return nil, fmt.Errorf("%w: IO %x", errParse, d)
			}
			list = append(list, resource{kind: "io", base: uint64(le.Uint16(d[2:])), size: uint64(d[7])})
		case 0x86:
			if n != 12 || d[3] != 1 {
				return nil, fmt.Errorf("%w: Memory32Fixed %x", errParse, d)
			}
			list = append(list, resource{kind: "mem", base: uint64(le.Uint32(d[4:])), size: uint64(le.Uint32(d[8:]))})
		case 0x89:
			if n != 9 || d[3] != 3 || d[4] != 1 {
				return nil, fmt.Errorf("%w: Interrupt %x", errParse, d)
			}
			list = append(list, resource{kind: "irq", base: uint64(le.Uint32(d[5:])), size: 1})
		case 0x87:
			err = space(kinds, 4)
		case 0x88:
			err = space(kinds, 2)
		case 0x8a:
			err = space(kinds, 8)
		default:
			err = fmt.Errorf("%w: descriptor %#x", errParse, tag)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: no end tag", errParse)
}

// crs gives the decoded _CRS of a device.
func (n *node) crs() ([]resource, error) {
	c := n.children["_CRS"]
	if c == nil {
		return nil, nil
	}
	b, ok := c.value.([]byte)
	if !ok {
		return nil, fmt.Errorf("%w: _CRS is no buffer", errParse)
	}
	return parseResources(b)
}
