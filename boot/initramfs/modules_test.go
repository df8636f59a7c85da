package initramfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

// koFile is a relocatable ELF object with nothing but a .modinfo section.
func koFile(info ...string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	modinfo := strings.Join(info, "\x00") + "\x00"
	body := modinfo + names
	for len(body)%8 != 0 {
		body += "\x00"
	}
	le := binary.LittleEndian
	b := make([]byte, ehdrSize)
	copy(b, elfMagic+"\x02\x01\x01")
	le.PutUint16(b[0x10:], 1)  // e_type: ET_REL
	le.PutUint16(b[0x12:], 62) // e_machine: EM_X86_64
	le.PutUint64(b[ehdrShoff:], uint64(ehdrSize+len(body)))
	le.PutUint16(b[ehdrShentsz:], shdrSize)
	le.PutUint16(b[ehdrShnum:], 3)
	le.PutUint16(b[ehdrShstrndx:], 2)
	b = append(b, body...)
	section := func(name, kind uint32, off, size int) {
		var h [shdrSize]byte
		le.PutUint32(h[shdrName:], name)
		le.PutUint32(h[shdrType:], kind)
		le.PutUint64(h[shdrOffset:], uint64(off))
		le.PutUint64(h[shdrLength:], uint64(size))
		b = append(b, h[:]...)
	}
	section(0, 0, 0, 0)
	section(1, 1, ehdrSize, len(modinfo))
	section(10, 3, ehdrSize+len(modinfo), len(names))
	return b
}

func gz(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func xzip(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func file(data []byte) *fstest.MapFile { return &fstest.MapFile{Data: data} }
func text(s string) *fstest.MapFile    { return file([]byte(s)) }

// unpacked is a modules directory as dpkg -x leaves it: no modules.dep.
func unpacked(t testing.TB) fstest.MapFS {
	return fstest.MapFS{
		"modules.builtin":                    text("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-pci.ko\n"),
		"modules.order":                      text("kernel/virt/lib/irqbypass.ko\n"),
		"kernel/virt/lib/irqbypass.ko":       file(koFile("license=GPL v2", "depends=", "name=irqbypass")),
		"kernel/arch/x86/kvm/kvm.ko.xz":      file(xzip(t, koFile("depends=irqbypass", "name=kvm"))),
		"kernel/arch/x86/kvm/kvm-amd.ko.gz":  file(gz(t, koFile("name=kvm_amd", "depends=kvm,ccp"))),
		"kernel/drivers/crypto/ccp.ko.zst":   file(zst(t, koFile("depends=rng-core", "name=ccp"))),
		"kernel/drivers/char/rng-core.ko":    file(koFile("depends=")),
		"kernel/fs/overlayfs/overlay.ko":     file(koFile("depends=", "softdep=pre: crc-a gone post: crc-b", "softdep=post: late")),
		"kernel/lib/crc-a.ko":                file(koFile("depends=")),
		"kernel/lib/crc-b.ko":                file(koFile("depends=", "softdep=pre: overlay")),
		"kernel/lib/late.ko":                 file(koFile("depends=nowhere")),
		"kernel/lib/lost.ko":                 file(koFile("depends=nowhere")),
		"kernel/lib/needs-ext4.ko":           file(koFile("depends=ext4,virtio_pci")),
		"kernel/lib/round-a.ko":              file(koFile("depends=round_b")),
		"kernel/lib/round-b.ko":              file(koFile("depends=round-c")),
		"kernel/lib/round-c.ko":              file(koFile("depends=round_a")),
		"kernel/lib/self.ko":                 file(koFile("depends=self")),
		"kernel/lib/twice.ko":                file(koFile("name=old", "depends=lost")),
		"updates/twice.ko":                   file(koFile("name=new", "depends=")),
		"kernel/lib/text.ko":                 text("not a module"),
		"kernel/lib/bad.ko.gz":               text("\x1f\x8bnot gzip"),
		"kernel/lib/bad-xz.ko.xz":            text("\xfd7zXZ\x00not xz"),
		"kernel/lib/bad-zst.ko.zst":          text("\x28\xb5\x2f\xfdnot zstd"),
		"kernel/lib/stripped.ko":             file(koFile()[:ehdrSize]),
		"kernel/lib/notes.ko.txt":            text("not even called like one"),
		"kernel/drivers/directory.ko/inside": text("a directory called like a module"),
	}
}

// installed is the same after depmod.
func installed(t testing.TB) fstest.MapFS {
	m := unpacked(t)
	m["modules.dep"] = text(`# comment
kernel/virt/lib/irqbypass.ko:
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko
kernel/arch/x86/kvm/kvm-amd.ko.gz: kernel/drivers/crypto/ccp.ko.zst kernel/drivers/char/rng-core.ko kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko
kernel/drivers/crypto/ccp.ko.zst: kernel/drivers/char/rng-core.ko
kernel/drivers/char/rng-core.ko:
kernel/fs/overlayfs/overlay.ko:
kernel/lib/crc-a.ko:
kernel/lib/crc-b.ko:
kernel/lib/late.ko: kernel/lib/nowhere.ko
kernel/lib/lost.ko: kernel/lib/nowhere.ko
kernel/lib/needs-ext4.ko:
kernel/lib/round-a.ko: kernel/lib/round-b.ko kernel/lib/round-c.ko
kernel/lib/round-b.ko: kernel/lib/round-c.ko kernel/lib/round-a.ko
kernel/lib/round-c.ko: kernel/lib/round-a.ko kernel/lib/round-b.ko
kernel/lib/self.ko: kernel/lib/self.ko
updates/twice.ko:
`)
	m["modules.softdep"] = text("# Soft dependencies\nsoftdep overlay pre: crc-a gone post: crc-b late\nsoftdep crc-b pre: overlay\nsoftdep\nsomething else\n")
	m["modules.alias"] = text("# Aliases\nalias fs-overlay overlay\nalias pci:v00001AF4d*sv* overlay\nalias fs-overlay lost\nalias broken\n")
	return m
}

func loadNames(sel Selection) []string {
	var names []string
	for _, m := range sel.Load {
		names = append(names, m.Name)
	}
	return names
}

func TestSelect(t *testing.T) {
	for kind, fsys := range map[string]fs.FS{"unpacked": unpacked(t), "installed": installed(t)} {
		d, err := NewModuleDir(fsys, "R")
		require.NoError(t, err)
		for _, c := range []struct {
			name    string
			opt     SelectOptions
			ask     []string
			load    []string
			builtin []string
			absent  []string
			err     error
			words   string
		}{
			{name: "nothing"},
			{name: "alone", ask: []string{"irqbypass"}, load: []string{"irqbypass"}},
			{name: "chain", ask: []string{"kvm"}, load: []string{"irqbypass", "kvm"}},
			{name: "dash", ask: []string{"kvm-amd"}, load: []string{"irqbypass", "kvm", "rng_core", "ccp", "kvm_amd"}},
			{name: "underscore", ask: []string{"kvm_amd"}, load: []string{"irqbypass", "kvm", "rng_core", "ccp", "kvm_amd"}},
			{name: "file name", ask: []string{"kvm-amd.ko"}, load: []string{"irqbypass", "kvm", "rng_core", "ccp", "kvm_amd"}},
			{name: "compressed file name", ask: []string{"kvm.ko.xz"}, load: []string{"irqbypass", "kvm"}},
			{name: "order asked for", ask: []string{"ccp", "kvm", "ccp", "irqbypass"}, load: []string{"rng_core", "ccp", "irqbypass", "kvm"}},
			{name: "excluded, with what only it needs", opt: SelectOptions{Exclude: []string{"ccp"}},
				ask: []string{"kvm-amd"}, load: []string{"irqbypass", "kvm", "kvm_amd"}},
			{name: "excluded, needed otherwise", opt: SelectOptions{Exclude: []string{"ccp"}},
				ask: []string{"kvm-amd", "rng-core"}, load: []string{"irqbypass", "kvm", "kvm_amd", "rng_core"}},
			{name: "excluded and asked for", opt: SelectOptions{Exclude: []string{"rng-core"}}, ask: []string{"rng_core"}},
			{name: "built in", ask: []string{"virtio_pci", "ext4"}, builtin: []string{"ext4", "virtio_pci"}},
			{name: "missing", ask: []string{"nonesuch"}, err: ErrNoModule, words: "no such module: nonesuch"},
			{name: "missing underneath", ask: []string{"lost"}, err: ErrNoModule, words: "no such module: nowhere (needed by lost)"},
			{name: "circle", ask: []string{"round-a"}, err: ErrModuleCycle},
			{name: "itself", ask: []string{"self"}, err: ErrModuleCycle, words: "self -> self"},
			{name: "no soft dependencies", ask: []string{"overlay"}, load: []string{"overlay"}},
			{name: "soft dependencies", opt: SelectOptions{Softdeps: true}, ask: []string{"overlay"},
				load: []string{"crc_a", "overlay", "crc_b"}, absent: []string{"gone", "late"}},
			{name: "soft dependency on each other", opt: SelectOptions{Softdeps: true}, ask: []string{"crc-b"},
				load: []string{"crc_a", "overlay", "crc_b"}, absent: []string{"gone", "late"}},
			{name: "updates win", ask: []string{"twice"}, load: []string{"twice"}},
		} {
			t.Run(kind+"/"+c.name, func(t *testing.T) {
				sel, err := d.Select(c.opt, c.ask...)
				if c.err != nil {
					require.ErrorIs(t, err, c.err)
					assert.ErrorContains(t, err, c.words)
					assert.ErrorContains(t, err, "R: ")
					return
				}
				require.NoError(t, err)
				assert.Equal(t, c.load, loadNames(sel))
				assert.Equal(t, c.builtin, sel.Builtin)
				assert.Equal(t, c.absent, sel.Absent)
			})
		}
	}
}

func TestSelectUnpackedReadsModules(t *testing.T) {
	d, err := NewModuleDir(unpacked(t), "R")
	require.NoError(t, err)
	for _, name := range []string{"text", "bad", "bad-xz", "bad-zst", "stripped"} {
		t.Run(name, func(t *testing.T) {
			_, err := d.Select(SelectOptions{}, name)
			assert.ErrorIs(t, err, ErrModule)
			assert.ErrorContains(t, err, "kernel/lib/"+name+".ko")
		})
	}
	sel, err := d.Select(SelectOptions{}, "needs-ext4")
	require.NoError(t, err)
	assert.Equal(t, []string{"ext4", "virtio_pci"}, sel.Builtin, "needed and built in")
	_, err = d.Select(SelectOptions{}, "fs-overlay")
	assert.ErrorIs(t, err, ErrNoModule, "aliases are known to depmod only")
}

// Without modules.builtin what is nowhere may be built in, for who trusts in that.
func TestSelectTrusting(t *testing.T) {
	index := fstest.MapFS{"modules.dep": text("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n")}
	d, err := NewModuleDir(index, "R")
	require.NoError(t, err)
	_, err = d.Select(SelectOptions{}, "a", "ext4")
	assert.ErrorIs(t, err, ErrNoModule)
	sel, err := d.Select(SelectOptions{Trusting: true}, "a", "ext4")
	require.NoError(t, err)
	assert.Equal(t, []string{"b", "a"}, loadNames(sel))
	assert.Equal(t, []string{"ext4"}, sel.Builtin)

	index["modules.builtin"] = text("\n")
	d, err = NewModuleDir(index, "R")
	require.NoError(t, err)
	_, err = d.Select(SelectOptions{Trusting: true}, "a", "ext4")
	assert.ErrorIs(t, err, ErrNoModule, "nothing is built in, as it says")
}

func TestSelectAlias(t *testing.T) {
	d, err := NewModuleDir(installed(t), "R")
	require.NoError(t, err)
	sel, err := d.Select(SelectOptions{}, "fs-overlay")
	require.NoError(t, err)
	assert.Equal(t, []string{"overlay"}, loadNames(sel))
}

func TestNewModuleDirRefuses(t *testing.T) {
	_, err := OpenModules(t.TempDir() + "/none")
	assert.ErrorIs(t, err, ErrModulesDir)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OpenModules(t.TempDir())
	assert.ErrorIs(t, err, ErrModulesDir)
	for name, dep := range map[string]string{
		"no colon":     "kernel/a.ko",
		"no module":    "kernel/a.txt:",
		"only .ko":     ".ko:",
		"climbs out":   "../a.ko:",
		"absolute":     "/lib/modules/R/a.ko:",
		"needs a text": "kernel/a.ko: README",
		"binary":       "\x7fELF\x00\x00",
		"endless line": "a.ko:" + strings.Repeat(" b.ko", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewModuleDir(fstest.MapFS{"modules.dep": text(dep)}, "R")
			assert.ErrorIs(t, err, ErrModulesDir)
			assert.ErrorContains(t, err, "modules.dep")
		})
	}
	_, err = NewModuleDir(fstest.MapFS{"modules.builtin": text("kernel/fs/ext4/ext4.ko\n")}, "R")
	assert.NoError(t, err, "a kernel without a single module")
}

func TestAddModules(t *testing.T) {
	d, err := NewModuleDir(unpacked(t), "R")
	require.NoError(t, err)
	sel, err := d.Select(SelectOptions{}, "kvm-amd")
	require.NoError(t, err)
	a := new(Archive)
	names, err := a.AddModules(d, sel, "/lib/modules/R/")
	require.NoError(t, err)
	assert.Equal(t, []string{
		"lib/modules/R/kernel/virt/lib/irqbypass.ko",
		"lib/modules/R/kernel/arch/x86/kvm/kvm.ko",
		"lib/modules/R/kernel/drivers/char/rng-core.ko",
		"lib/modules/R/kernel/drivers/crypto/ccp.ko",
		"lib/modules/R/kernel/arch/x86/kvm/kvm-amd.ko",
	}, names)
	assert.Equal(t, "kvm-amd.ko", sel.Load[4].File())
	got, err := readAll(bytes.NewReader(imageBytes(t, a.Image())))
	require.NoError(t, err)
	n := 0
	for _, h := range got {
		if h.Mode.IsRegular() {
			data, err := io.ReadAll(io.NewSectionReader(h.Body, 0, h.Size))
			require.NoError(t, err)
			assert.Equal(t, elfMagic, string(data[:4]), h.Name)
			n++
		}
	}
	assert.Equal(t, len(names), n)
	_, err = a.AddModules(d, sel, "lib/modules/R")
	assert.ErrorIs(t, err, ErrExist)
}

// bomb is a module of n bytes.
func bomb(n int, info ...string) []byte {
	ko := koFile(info...)
	return append(ko, make([]byte, n-len(ko))...)
}

// TestSelectionIsBounded: what many modules take together, of which each is small enough.
func TestSelectionIsBounded(t *testing.T) {
	files := fstest.MapFS{
		"a.ko.zst": file(zst(t, bomb(40<<10, "depends=b"))),
		"b.ko.xz":  file(xzip(t, bomb(40<<10, "depends=c"))),
		"c.ko.gz":  file(gz(t, bomb(40<<10, "depends="))),
	}
	indexed := maps.Clone(files)
	indexed["modules.dep"] = text("a.ko.zst: b.ko.xz c.ko.gz\nb.ko.xz: c.ko.gz\nc.ko.gz:\n")
	for name, c := range map[string]struct {
		files    fs.FS
		selected int64
		want     string
	}{
		"all fit":              {indexed, 120 << 10, ""},
		"one byte too many":    {indexed, 120<<10 - 1, "R: a.ko.zst: "},
		"more than one":        {indexed, 50 << 10, "R: b.ko.xz: "},
		"nothing left":         {indexed, 80 << 10, "R: a.ko.zst: "},
		"unindexed, and fit":   {files, 120 << 10, ""},
		"unindexed, too large": {files, 100 << 10, "R: c.ko.gz: "}, // which is read last
	} {
		t.Run(name, func(t *testing.T) {
			d, err := NewModuleDir(c.files, "R")
			require.NoError(t, err)
			d.bounds.selected = c.selected
			sel, err := d.Select(SelectOptions{}, "a")
			if err == nil {
				_, err = new(Archive).AddModules(d, sel, "lib/modules")
			}
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrModule)
			require.ErrorIs(t, err, errTooLarge)
			assert.ErrorContains(t, err, c.want)
			assert.ErrorContains(t, err, fmt.Sprintf("the modules that are selected have more than %d bytes", c.selected))
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	t.Run("one that is too large by itself", func(t *testing.T) {
		d, err := NewModuleDir(indexed, "R")
		require.NoError(t, err)
		d.bounds.module = 30 << 10
		sel, err := d.Select(SelectOptions{}, "a")
		require.NoError(t, err)
		_, err = new(Archive).AddModules(d, sel, "lib/modules")
		require.ErrorIs(t, err, ErrModule)
		assert.ErrorContains(t, err, "R: c.ko.gz: not a usable kernel module: it is too large: more than 30720 bytes")
	})
}

func TestDecompressIsBounded(t *testing.T) {
	zeroes := make([]byte, 1<<20)
	for suffix, data := range map[string][]byte{
		"":     zeroes,
		".gz":  gz(t, zeroes),
		".xz":  xzip(t, zeroes),
		".zst": zst(t, zeroes),
	} {
		t.Run(suffix, func(t *testing.T) {
			got, err := decompress(suffix, bytes.NewReader(data), 1<<20, maxWindow)
			require.NoError(t, err)
			assert.Equal(t, zeroes, got)
			_, err = decompress(suffix, bytes.NewReader(data), 1<<20-1, maxWindow)
			assert.ErrorIs(t, err, errTooLarge)
			if suffix != "" {
				_, err = decompress(suffix, bytes.NewReader(data[:len(data)/2]), 1<<20, maxWindow)
				assert.Error(t, err, "cut short")
			}
		})
	}
}

func TestModinfo(t *testing.T) {
	le := binary.LittleEndian
	good := koFile("depends=a,b", "no equals sign", "parm=x:y=z")
	got, err := modinfo(good)
	require.NoError(t, err)
	assert.Equal(t, []keyValue{{"depends", "a,b"}, {"parm", "x:y=z"}}, got)
	patch := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	shoff := le.Uint64(good[ehdrShoff:])
	for _, c := range []struct {
		name string
		elf  []byte
		want string
	}{
		{"empty", nil, "not an ELF object"},
		{"header cut", good[:ehdrSize-1], "not an ELF object"},
		{"32-bit", patch(func(b []byte) { b[4] = 1 }), "not a 64-bit"},
		{"big-endian", patch(func(b []byte) { b[5] = 2 }), "not a 64-bit"},
		{"table cut", good[:len(good)-1], "section headers are outside"},
		{"table wraps", patch(func(b []byte) { le.PutUint64(b[ehdrShoff:], 1<<64-1) }), "section headers are outside"},
		{"entry size", patch(func(b []byte) { b[ehdrShentsz] = 40 }), "section headers of 40 bytes"},
		{"no sections", patch(func(b []byte) { b[ehdrShnum] = 0 }), "no section names"},
		{"names index", patch(func(b []byte) { b[ehdrShstrndx] = 3 }), "no section names"},
		{"names outside", patch(func(b []byte) { le.PutUint64(b[shoff+2*shdrSize+shdrOffset:], 1<<63) }), "section names are outside"},
		{"contents outside", patch(func(b []byte) { le.PutUint64(b[shoff+shdrSize+shdrLength:], 1<<63) }), "section .modinfo is outside"},
		{"other name", patch(func(b []byte) { b[shoff+shdrSize+shdrName] = 2 }), "no section .modinfo"},
		{"name outside", patch(func(b []byte) { le.PutUint32(b[shoff+shdrSize:], 1<<32-1) }), "no section .modinfo"},
		{"no contents", patch(func(b []byte) { b[shoff+shdrSize+shdrType] = shtNobits }), "no section .modinfo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := modinfo(c.elf)
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(koFile("depends=a,b", "softdep=pre: c"))
	f.Add([]byte(elfMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := modinfo(data)
		if err == nil && len(info) > len(data) {
			t.Fatalf("%d strings in %d bytes", len(info), len(data))
		}
	})
}

func FuzzModulesIndex(f *testing.F) {
	m := installed(f)
	f.Add(m["modules.dep"].Data, m["modules.builtin"].Data, m["modules.softdep"].Data, m["modules.alias"].Data, "overlay")
	f.Fuzz(func(t *testing.T, dep, builtin, softdep, alias []byte, name string) {
		d, err := NewModuleDir(fstest.MapFS{
			"modules.dep":     file(dep),
			"modules.builtin": file(builtin),
			"modules.softdep": file(softdep),
			"modules.alias":   file(alias),
		}, "R")
		if err != nil {
			return
		}
		sel, err := d.Select(SelectOptions{Softdeps: true}, name)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, m := range sel.Load {
			if seen[m.Name] || !fs.ValidPath(m.Path) {
				t.Fatalf("%s is selected twice or has the path %q", m.Name, m.Path)
			}
			seen[m.Name] = true
		}
	})
}
