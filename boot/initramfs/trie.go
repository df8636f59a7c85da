package initramfs

import (
	"encoding/binary"
	"slices"
)

// The binary index that modprobe searches: a radix tree over 7-bit characters,
// written behind its children, with offsets whose upper bits say what the node
// has. All numbers are big-endian. (kmod, libkmod/libkmod-index.h.)
const (
	trieMagic   = 0xb007f457
	trieVersion = 0x00020001

	trieHasPrefix   = 0x80000000
	trieHasValues   = 0x40000000
	trieHasChildren = 0x20000000

	trieChars = 128
)

// trie is a node: what all keys below it begin with beyond their parent's
// character, the values of the key that ends here, and the children.
type trie struct {
	prefix   string
	values   []trieValue
	children map[byte]*trie
}

type trieValue struct {
	priority uint32 // the lowest comes first
	value    string
}

// insert adds a value to a key. Keys with characters that the format does not
// have, which no module's name has, are left out.
func (t *trie) insert(key, value string, priority uint32) {
	for i := range len(key) {
		if key[i] == 0 || key[i] >= trieChars {
			return
		}
	}
	for {
		same := 0
		for same < len(key) && same < len(t.prefix) && key[same] == t.prefix[same] {
			same++
		}
		if same < len(t.prefix) {
			below := &trie{prefix: t.prefix[same+1:], values: t.values, children: t.children}
			*t = trie{prefix: t.prefix[:same], children: map[byte]*trie{t.prefix[same]: below}}
		}
		if key = key[same:]; key == "" {
			t.add(trieValue{priority, value})
			return
		}
		next := t.children[key[0]]
		if next == nil {
			next = &trie{prefix: key[1:], values: []trieValue{{priority, value}}}
			if t.children == nil {
				t.children = map[byte]*trie{}
			}
			t.children[key[0]] = next
			return
		}
		t, key = next, key[1:]
	}
}

func (t *trie) add(v trieValue) {
	at, _ := slices.BinarySearchFunc(t.values, v, func(a, b trieValue) int {
		if a.priority <= b.priority {
			return -1
		}
		return 1
	})
	t.values = slices.Insert(t.values, at, v)
}

// encode returns the file.
func (t *trie) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, trieMagic)
	b = binary.BigEndian.AppendUint32(b, trieVersion)
	b = append(b, 0, 0, 0, 0)
	b, root := t.append(b)
	binary.BigEndian.PutUint32(b[8:], root)
	return b
}

// append writes the node behind its children and returns where it is.
func (t *trie) append(b []byte) ([]byte, uint32) {
	var first, last byte = 1, 0
	var offsets [trieChars]uint32
	for c := range byte(trieChars) {
		child := t.children[c]
		if child == nil {
			continue
		}
		if first > last {
			first = c
		}
		last = c
		b, offsets[c] = child.append(b)
	}
	at := uint32(len(b))
	if t.prefix != "" {
		at |= trieHasPrefix
		b = append(append(b, t.prefix...), 0)
	}
	if first <= last {
		at |= trieHasChildren
		b = append(b, first, last)
		for c := first; c <= last; c++ {
			b = binary.BigEndian.AppendUint32(b, offsets[c])
		}
	}
	if len(t.values) > 0 {
		at |= trieHasValues
		b = binary.BigEndian.AppendUint32(b, uint32(len(t.values)))
		for _, v := range t.values {
			b = binary.BigEndian.AppendUint32(b, v.priority)
			b = append(append(b, v.value...), 0)
		}
	}
	return b, at
}
