package acpi

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPkgLength(t *testing.T) {
	// payload bytes, and the PkgLength before them, which counts itself.
	for _, c := range []struct {
		payload int
		want    []byte
	}{
		{0, []byte{0x01}},
		{1, []byte{0x02}},
		{61, []byte{0x3e}},
		{62, []byte{0x3f}},
		{63, []byte{0x41, 0x04}}, // 65: one byte would not hold 64
		{64, []byte{0x42, 0x04}},
		{4092, []byte{0x4e, 0xff}},
		{4093, []byte{0x4f, 0xff}},       // 4095
		{4094, []byte{0x81, 0x00, 0x01}}, // 4097
		{4095, []byte{0x82, 0x00, 0x01}},
		{4096, []byte{0x83, 0x00, 0x01}},
		{1<<20 - 5, []byte{0x8e, 0xff, 0xff}},
		{1<<20 - 4, []byte{0x8f, 0xff, 0xff}}, // 1048575
		{1<<20 - 3, []byte{0xc1, 0x00, 0x00, 0x01}},
		{1 << 20, []byte{0xc4, 0x00, 0x00, 0x01}},
		{1<<28 - 5, []byte{0xcf, 0xff, 0xff, 0xff}},
	} {
		t.Run(fmt.Sprint(c.payload), func(t *testing.T) {
			got := pkgLength(c.payload)
			require.NoError(t, got.err)
			require.Equal(t, c.want, got.b)
			v, own, err := (&amlReader{append([]byte(nil), got.b...)}).pkgLength()
			require.NoError(t, err)
			require.Equal(t, c.payload+own, v)
		})
	}
	for _, n := range []int{1<<28 - 4, 1 << 28, 1 << 40} {
		require.ErrorIs(t, pkgLength(n).err, errAML, n)
	}
}

// Every payload around the places where a byte is added reads back whole.
func TestPkgLengthRoundTrip(t *testing.T) {
	for _, edge := range []int{0, 62, 63, 64, 4092, 4093, 4094, 4095, 4096, 1<<20 - 4, 1<<20 - 3, 1 << 20} {
		for n := max(0, edge-2); n <= edge+2; n++ {
			body := term{b: bytes.Repeat([]byte{0xa3}, n)}
			got := join(pkg(raw(opElse), body), raw(opOne))
			require.NoError(t, got.err)
			r := &amlReader{got.b[1:]}
			p, err := r.pkg()
			require.NoError(t, err)
			require.Len(t, p.b, n)
			require.Equal(t, []byte{opOne}, r.b)
		}
	}
}

func TestFieldUnitLengths(t *testing.T) {
	// In a field list the PkgLength counts bits and does not count itself.
	for _, c := range []struct {
		bits int
		want []byte
	}{
		{1, []byte{0x01}},
		{63, []byte{0x3f}},
		{64, []byte{0x40, 0x04}},
		{4095, []byte{0x4f, 0xff}},
		{4096, []byte{0x80, 0x00, 0x01}},
	} {
		got := field("REGN", fieldUnit{"AB", c.bits}, fieldUnit{"", 3})
		require.NoError(t, got.err)
		n := 1 + 4 + 1 + 4 + len(c.want) + 2
		want := append([]byte{0x5b, 0x81, byte(n), 'R', 'E', 'G', 'N', 1, 'A', 'B', '_', '_'}, c.want...)
		require.Equal(t, append(want, 0, 3), got.b)
	}
	require.ErrorIs(t, field("REGN", fieldUnit{"AB", -1}).err, errAML)
	require.ErrorIs(t, field("REGN", fieldUnit{"AB", 1 << 28}).err, errAML)
	require.ErrorIs(t, field("REGN", fieldUnit{"A.B", 1}).err, errAML)
}

func TestTerms(t *testing.T) {
	// The bytes on the right are those of iasl for the ASL in the name.
	for _, c := range []struct {
		name string
		got  term
		want []byte
	}{
		{`Zero`, integer(0), []byte{0}},
		{`One`, integer(1), []byte{1}},
		{`Ones`, integer(^uint64(0)), []byte{0xff}},
		{`2`, integer(2), []byte{0x0a, 2}},
		{`0xff`, integer(0xff), []byte{0x0a, 0xff}},
		{`0x100`, integer(0x100), []byte{0x0b, 0, 1}},
		{`0xffff`, integer(0xffff), []byte{0x0b, 0xff, 0xff}},
		{`0x10000`, integer(0x10000), []byte{0x0c, 0, 0, 1, 0}},
		{`0xffffffff`, integer(0xffffffff), []byte{0x0c, 0xff, 0xff, 0xff, 0xff}},
		{`0x100000000`, integer(1 << 32), []byte{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}},
		{`constant 1`, constant(1), []byte{0x0a, 1}},
		{`"AB"`, str("AB"), []byte{0x0d, 'A', 'B', 0}},
		{`""`, str(""), []byte{0x0d, 0}},
		{`Buffer(){1,2}`, buffer([]byte{1, 2}), []byte{0x11, 5, 0x0a, 2, 1, 2}},
		{`Buffer(){7}`, buffer([]byte{7}), []byte{0x11, 3, 1, 7}},
		{`Package(){5,0}`, packageOf(integer(5), integer(0)), []byte{0x12, 5, 2, 0x0a, 5, 0}},
		{`Package(){}`, packageOf(), []byte{0x12, 2, 0}},
		{`EISAID("PNP0501")`, eisaID("PNP0501"), []byte{0x0c, 0x41, 0xd0, 0x05, 0x01}},
		{`EISAID("PNP0A08")`, eisaID("PNP0A08"), []byte{0x0c, 0x41, 0xd0, 0x0a, 0x08}},
		{`EISAID("ABC89EF")`, eisaID("ABC89EF"), []byte{0x0c, 0x04, 0x43, 0x89, 0xef}},
		{
			`ToUUID("33db4d5b-1ff7-401c-9657-7441c03dd766")`, uuid("33DB4D5B-1ff7-401c-9657-7441c03dd766"),
			[]byte{
				0x11, 0x13, 0x0a, 0x10, 0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
				0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66,
			},
		},
		{`Name(_UID, 3)`, name("_UID", integer(3)), []byte{0x08, '_', 'U', 'I', 'D', 0x0a, 3}},
		{`Scope(\_SB){}`, scope(`\_SB`), []byte{0x10, 6, '\\', '_', 'S', 'B', '_'}},
		{`Device(A){}`, device("A"), []byte{0x5b, 0x82, 5, 'A', '_', '_', '_'}},
		{
			`Method(M,2,Serialized){Return(Arg1)}`, method("M", 2, returnValue(arg(1))),
			[]byte{0x14, 8, 'M', '_', '_', '_', 0x0a, 0xa4, 0x69},
		},
		{
			`OperationRegion(R,SystemIO,0x604,1)`, opRegion("R", regionSystemIO, 0x604, 1),
			[]byte{0x5b, 0x80, 'R', '_', '_', '_', 1, 0x0b, 4, 6, 1},
		},
		{
			`If(Local0 & 1){}Else{}`, join(ifThen(and(local0(), integer(1), noTarget())), elseThen()),
			[]byte{0xa0, 5, 0x7b, 0x60, 1, 0, 0xa1, 1},
		},
		{`A |= 4`, or(ref("A"), constant(4), ref("A")), []byte{0x7d, 'A', '_', '_', '_', 0x0a, 4, 'A', '_', '_', '_'}},
		{`Local0 = A`, store(ref("A"), local0()), []byte{0x70, 'A', '_', '_', '_', 0x60}},
		{`Arg1 != 1`, lNot(lEqual(arg(1), integer(1))), []byte{0x92, 0x93, 0x69, 1}},
		{`Notify(P,0x80)`, notify("P", 0x80), []byte{0x86, 'P', '_', '_', '_', 0x0a, 0x80}},
		{
			`CreateDWordField(Arg3,4,W)`, createDWordField(arg(3), 4, "W"),
			[]byte{0x8a, 0x6b, 0x0a, 4, 'W', '_', '_', '_'},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, c.got.err)
			require.Equal(t, c.want, c.got.b)
		})
	}
}

func TestNameString(t *testing.T) {
	for path, want := range map[string]string{
		``:             "\x00",
		`\`:            "\\\x00",
		`^`:            "^\x00",
		`A`:            "A___",
		`_SB`:          "_SB_",
		`\_SB`:         "\\_SB_",
		`^^AB1`:        "^^AB1_",
		`\_SB.PWRB`:    "\\\x2e_SB_PWRB",
		`_SB.PCI0.LNK`: "\x2f\x03_SB_PCI0LNK_",
	} {
		got := nameString(path)
		require.NoError(t, got.err, path)
		assert.Equal(t, want, string(got.b), path)
		r := &amlReader{got.b}
		back, err := r.name()
		require.NoError(t, err, path)
		assert.Equal(t, path, back)
		assert.Empty(t, r.b)
	}
	for _, path := range []string{
		"ABCDE", "a", "1A", "A.", ".A", "A..B", `A\B`, `\^A`, `^\A`, "A B", "A\x00", "Ä",
		strings.Repeat("A.", 255) + "A",
	} {
		assert.ErrorIs(t, nameString(path).err, errAML, path)
	}
	assert.NoError(t, nameString(strings.Repeat("A.", 254)+"A").err)
}

func TestTermErrors(t *testing.T) {
	wrong := nameSeg("wrong")
	for _, c := range []struct {
		name string
		t    term
	}{
		{"EISA length", eisaID("PNP05011")},
		{"EISA lower case", eisaID("PNP0a08")},
		{"EISA letter first", eisaID("1NP0A08")},
		{"UUID length", uuid("33db4d5b")},
		{"UUID dashes", uuid("33db4d5b-1ff7-401c-9657+7441c03dd766")},
		{"UUID digits", uuid("33db4d5b-1ff7-401c-9657-7441c03dd76g")},
		{"string", str("é")},
		{"string with NUL", str("a\x00b")},
		{"package", packageOf(make([]term, 256)...)},
		{"method arguments", method("M", 8)},
		{"negative method arguments", method("M", -1)},
		{"Arg7", arg(7)},
		{"Arg-1", arg(-1)},
		{"no buses", busNumbers(0)},
		{"257 buses", busNumbers(257)},
		{"empty window", memoryWindow32(0x1000, 0)},
		{"4 GiB window", memoryWindow32(0, 1<<32)},
		{"window across 4 GiB", memoryWindow32(0xfffff000, 0x2000)},
		{"empty 64-bit window", memoryWindow64(0, 0)},
		{"64-bit window that wraps", memoryWindow64(1<<63, 1<<63+1)},
		// An error inside reaches the outside of each construct.
		{"in join", join(integer(1), wrong)},
		{"in package", packageOf(wrong)},
		{"in scope", scope("_SB", device("A", name("B", wrong)))},
		{"in device name", device("wrong")},
		{"in method", method("M", 0, wrong)},
		{"in field", field("wrong")},
		{"in template", resourceTemplate(wrong)},
		{"in if", ifThen(wrong)},
		{"in else", elseThen(wrong)},
	} {
		t.Run(c.name, func(t *testing.T) { require.ErrorIs(t, c.t.err, errAML) })
	}
}

func TestResourceDescriptors(t *testing.T) {
	for _, c := range []struct {
		name string
		got  term
		want []resource
	}{
		{"io", ioPorts(0x3f8, 8), []resource{{kind: "io", base: 0x3f8, size: 8}}},
		{"interrupt", interrupt(23), []resource{{kind: "irq", base: 23, size: 1}}},
		{"memory", memory(0xc0001000, 0x1000), []resource{{kind: "mem", base: 0xc0001000, size: 0x1000}}},
		{"memory up to 4 GiB", memory(0xfffff000, 0x1000), []resource{{kind: "mem", base: 0xfffff000, size: 0x1000}}},
		{"memory across 4 GiB", memory(0xfffff000, 0x2000), []resource{{kind: "mem", base: 0xfffff000, size: 0x2000}}},
		{"high memory", memory(1<<40, 0x1000), []resource{{kind: "mem", base: 1 << 40, size: 0x1000}}},
		{"large memory", memory(0x1000, 1<<32), []resource{{kind: "mem", base: 0x1000, size: 1 << 32}}},
		{"buses", busNumbers(256), []resource{{"bus", 0, 256, true}}},
		{"window", memoryWindow32(0xd0000000, 0x10000000), []resource{{"mem", 0xd0000000, 0x10000000, true}}},
		{"high window", memoryWindow64(1<<39, 1<<38), []resource{{"mem", 1 << 39, 1 << 38, true}}},
		{"none", term{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := resourceTemplate(c.got)
			require.NoError(t, got.err)
			v, err := (&amlReader{got.b}).data()
			require.NoError(t, err)
			list, err := parseResources(v.([]byte))
			require.NoError(t, err)
			require.Equal(t, c.want, list)
		})
	}
}
