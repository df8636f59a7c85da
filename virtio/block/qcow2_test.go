package block

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// qcow2Builder makes images by hand. Clusters are 4 KiB unless bits says
// otherwise: an L2 table has 512 entries then and stands for 2 MiB.
type qcow2Builder struct {
	version int
	bits    int
	size    int64
	// what lies where, by cluster of the disk
	data, compressed map[int64][]byte
	zero             map[int64]bool // version 3
	patch            func(p []byte)
}

const testCluster = 4096

func (b *qcow2Builder) build(t testing.TB) []byte {
	be := binary.BigEndian
	bits := cmp.Or(b.bits, 12)
	cluster := int64(1) << bits
	entries := cluster / 8
	p := make([]byte, 2*cluster)
	copy(p, qcow2Magic)
	be.PutUint32(p[4:], uint32(b.version))
	be.PutUint32(p[20:], uint32(bits))
	be.PutUint64(p[24:], uint64(b.size))
	l1 := (b.size + cluster*entries - 1) / (cluster * entries)
	require.LessOrEqual(t, l1, entries)
	be.PutUint32(p[36:], uint32(l1))
	be.PutUint64(p[40:], uint64(cluster))
	if b.version == 3 {
		be.PutUint32(p[96:], 4)
		be.PutUint32(p[100:], 104)
	}
	grow := func() int64 {
		at := (int64(len(p)) + cluster - 1) / cluster * cluster
		p = append(p, make([]byte, at+cluster-int64(len(p)))...)
		return at
	}
	entry := func(c int64, value uint64) {
		slot := cluster + c/entries*8
		l2 := int64(be.Uint64(p[slot:]) &^ (1 << 63))
		if l2 == 0 {
			l2 = grow()
			be.PutUint64(p[slot:], uint64(l2)|1<<63)
		}
		be.PutUint64(p[l2+c%entries*8:], value)
	}
	for c := range b.zero {
		entry(c, 1)
	}
	for c, d := range b.data {
		at := grow()
		copy(p[at:], d)
		entry(c, uint64(at)|1<<63)
	}
	for c, d := range b.compressed {
		entry(c, 0) // its table comes first
		var z bytes.Buffer
		w, err := flate.NewWriter(&z, 9)
		require.NoError(t, err)
		_, err = w.Write(d)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		at := len(p) // anywhere, and at the very end of the file
		p = append(p, z.Bytes()...)
		sectors := (at%512 + z.Len() - 1) / 512
		entry(c, uint64(at)|uint64(sectors)<<(62-bits+8)|1<<62)
	}
	if b.patch != nil {
		b.patch(p)
	}
	return p
}

func (b *qcow2Builder) file(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	require.NoError(t, os.WriteFile(path, b.build(t), 0o600))
	return path
}

func testQcow2(version int) (*qcow2Builder, []byte) {
	r := rand.New(rand.NewPCG(1, 1))
	const size = 5<<20 + 512
	model := make([]byte, size)
	b := &qcow2Builder{version: version, size: size, data: map[int64][]byte{}, compressed: map[int64][]byte{}}
	for _, c := range []int64{0, 3, 4, 600, size / testCluster} {
		d := random(testCluster, r)
		b.data[c] = d
		copy(model[c*testCluster:], d)
	}
	for _, c := range []int64{5, 6, 601} {
		d := append(random(100, r), make([]byte, testCluster-100)...)
		b.compressed[c] = d
		copy(model[c*testCluster:], d)
	}
	if version == 3 {
		b.zero = map[int64]bool{7: true, 602: true}
	}
	return b, model
}

func TestQcow2Reads(t *testing.T) {
	for _, version := range []int{2, 3} {
		for _, o := range []OpenOptions{{ReadOnly: true}, {ReadOnly: true, Cache: NoCache}, {COW: COWMemory}} {
			b, model := testQcow2(version)
			o.Path, o.Format = b.file(t), FormatQcow2
			img, err := Open(o)
			require.NoError(t, err)
			assert.EqualValues(t, len(model), img.Size())
			assert.Equal(t, o.COW != COWNone, CanWrite(img))
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(w), 1))
					for k := range 200 {
						off := r.IntN(len(model)/512) * 512
						n := min(len(model)-off, 512*(1+r.IntN(60)))
						if k == 0 {
							off, n = 0, len(model)
						}
						p := bytes.Repeat([]byte{0xee}, n)
						got, err := img.ReadAt(p, int64(off))
						if !assert.NoError(t, err) || !assert.Equal(t, n, got) ||
							!assert.True(t, bytes.Equal(model[off:off+n], p), "%d at %d", n, off) {
							return
						}
					}
				})
			}
			wg.Wait()
			_, err = img.ReadAt(make([]byte, 1024), int64(len(model))-512)
			assert.ErrorIs(t, err, ErrRange)
			if o.COW != COWNone {
				checkOver(t, img, model, 100)
			}
			require.NoError(t, img.(interface{ Close() error }).Close())
		}
	}
}

// TestQcow2LargeClusters reads a compressed cluster that a decompressor gives
// in several pieces.
// TestQcow2Describe: a report names the file and what it is, also below an overlay.
func TestQcow2Describe(t *testing.T) {
	b, _ := testQcow2(3)
	path := b.file(t)
	for cow, want := range map[COW]map[string]any{
		COWNone:   {"file": path, "format": "qcow2", "cache": "writeback", "ro": true, "queues": 1},
		COWMemory: {"file": path, "format": "qcow2", "cache": "writeback", "ro": false, "queues": 1, "cow": "memory"},
	} {
		img, err := Open(OpenOptions{Path: path, Format: FormatQcow2, ReadOnly: cow == COWNone, COW: cow})
		require.NoError(t, err)
		d, err := New(img, Options{})
		require.NoError(t, err)
		assert.Equal(t, want, d.Describe())
		assert.NoError(t, d.Close())
	}
}

func TestQcow2LargeClusters(t *testing.T) {
	const bits, cluster = 18, 1 << 18
	r := rand.New(rand.NewPCG(2, 2))
	want := bytes.Repeat(random(300, r), cluster/300+1)[:cluster]
	var z bytes.Buffer
	w, err := flate.NewWriter(&z, 9)
	require.NoError(t, err)
	_, err = w.Write(want)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	p := make([]byte, 3*cluster)
	be := binary.BigEndian
	copy(p, qcow2Magic)
	be.PutUint32(p[4:], 2)
	be.PutUint32(p[20:], bits)
	be.PutUint64(p[24:], 2*cluster)
	be.PutUint32(p[36:], 1)
	be.PutUint64(p[40:], cluster)
	be.PutUint64(p[cluster:], 2*cluster)
	for i := range 2 {
		be.PutUint64(p[2*cluster+8*i:], uint64(len(p))|1<<62|uint64(z.Len()/512+1)<<(62-bits+8))
	}
	p = append(p, z.Bytes()...)
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, p, 0o600))
	img, err := Open(OpenOptions{Path: path, Format: FormatQcow2, ReadOnly: true})
	require.NoError(t, err)
	defer img.(*Qcow2).Close()
	got := make([]byte, 2*cluster)
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(append(bytes.Clone(want), want...), got))
}

func TestQcow2Refuses(t *testing.T) {
	be := binary.BigEndian
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, make([]byte, 8192), 0o600))
	for _, c := range []struct {
		name    string
		version int
		patch   func(p []byte)
		cut     int
		want    string
	}{
		{"backing file", 3, func(p []byte) {
			be.PutUint64(p[8:], 512)
			be.PutUint32(p[16:], uint32(len(secret)))
			copy(p[512:], secret)
		}, 0, "backing file"},
		{"backing file of version 2", 2, func(p []byte) { be.PutUint64(p[8:], 512) }, 0, "backing file"},
		{"external data file", 3, func(p []byte) { p[79] = 4 }, 0, "external data file"},
		{"encrypted", 3, func(p []byte) { p[35] = 2 }, 0, "encrypted"},
		{"encrypted the old way", 2, func(p []byte) { p[35] = 1 }, 0, "encrypted"},
		{"corrupt", 3, func(p []byte) { p[79] = 2 }, 0, "corrupt"},
		{"extended L2", 3, func(p []byte) { p[79] = 16 }, 0, "extended L2"},
		{"a feature of the future", 3, func(p []byte) { p[72] = 0x80 }, 0, "0x8000000000000000"},
		{"zstd", 3, func(p []byte) { p[79] = 8; p[103] = 112; p[104] = 1 }, 0, "compression type 1"},
		{"version 1", 1, nil, 0, "version 1"},
		{"version 4", 4, nil, 0, "version 4"},
		{"short header", 3, func(p []byte) { p[103] = 72 }, 0, "header of 72 bytes"},
		{"cluster bits", 3, func(p []byte) { p[23] = 63 }, 0, "2^63"},
		{"small clusters", 3, func(p []byte) { p[23] = 8 }, 0, "2^8"},
		{"no disk", 3, func(p []byte) { be.PutUint64(p[24:], 0) }, 0, "disk of 0 bytes"},
		{"odd disk", 3, func(p []byte) { be.PutUint64(p[24:], 1000) }, 0, "disk of 1000 bytes"},
		{"negative disk", 3, func(p []byte) { be.PutUint64(p[24:], 1<<63) }, 0, "too much"},
		{"no L1 table", 3, func(p []byte) { be.PutUint32(p[36:], 0) }, 0, "0 L1 entries"},
		{"a disk of 2^61 bytes", 3, func(p []byte) { be.PutUint64(p[24:], 1<<61); be.PutUint32(p[36:], 1<<31) }, 0, "L1 entries of at most"},
		{"L1 table in the header", 3, func(p []byte) { be.PutUint64(p[40:], 0) }, 0, "L1 table"},
		{"L1 table behind the end", 3, func(p []byte) { be.PutUint64(p[40:], 1<<40) }, 0, "L1 table"},
		{"L1 table far behind the end", 3, func(p []byte) { be.PutUint64(p[40:], 1<<63) }, 0, "L1 table"},
		{"cut off", 3, nil, testCluster, "cut off"},
		{"cut off in the header", 3, nil, 80, "ends inside its header"},
		{"next to nothing", 2, nil, 40, "not a qcow2 image"},
		{"nothing", 2, nil, -1, "not a qcow2 image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := (&qcow2Builder{version: c.version, size: 1 << 20, patch: c.patch}).file(t)
			if c.cut != 0 {
				require.NoError(t, os.Truncate(path, int64(max(c.cut, 0))))
			}
			img, err := Open(OpenOptions{Path: path, Format: FormatQcow2, ReadOnly: true})
			assertRefused(t, img, err, path, c.want)
			// Nothing keeps the lock.
			f, err := openFile(path, false, Writeback, setLock)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		})
	}
}

func TestQcow2Damaged(t *testing.T) {
	be := binary.BigEndian
	for _, c := range []struct {
		name  string
		patch func(p []byte)
	}{
		{"L2 table behind the end", func(p []byte) { be.PutUint64(p[testCluster:], 1<<50) }},
		{"L2 table across the end", func(p []byte) { be.PutUint64(p[testCluster:], uint64(len(p)-512)) }},
		{"data behind the end", func(p []byte) { be.PutUint64(p[3*testCluster:], 1<<50) }},
		{"compressed data behind the end", func(p []byte) { be.PutUint64(p[3*testCluster:], 1<<62|1<<50) }},
		{"compressed data that is none", func(p []byte) { be.PutUint64(p[3*testCluster:], 1<<62|testCluster) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &qcow2Builder{version: 3, size: 1 << 20, patch: c.patch, data: map[int64][]byte{0: make([]byte, testCluster)}}
			path := b.file(t)
			img, err := Open(OpenOptions{Path: path, Format: FormatQcow2, ReadOnly: true})
			require.NoError(t, err)
			defer img.(*Qcow2).Close()
			_, err = img.ReadAt(make([]byte, 8192), 0)
			assert.ErrorContains(t, err, path)
		})
	}
}

// FuzzQcow2 opens anything and reads all of it, or the ends of what is large.
func FuzzQcow2(f *testing.F) {
	for _, v := range []int{2, 3} {
		// Small ones: a mutation should hit what counts.
		d := bytes.Repeat([]byte{1, 2, 3, 4}, 128)
		f.Add((&qcow2Builder{version: v, bits: 9, size: 64 << 10, data: map[int64][]byte{0: d, 70: d}}).build(f))
		f.Add((&qcow2Builder{version: v, bits: 9, size: 64 << 10, compressed: map[int64][]byte{1: d, 100: d}}).build(f))
		f.Add((&qcow2Builder{version: v, bits: 9, size: 512}).build(f))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		q, err := newQcow2(bytes.NewReader(p), int64(len(p)), "fuzz")
		if err != nil {
			require.ErrorIs(t, err, ErrImage)
			return
		}
		buf := make([]byte, 64<<10)
		for _, off := range []int64{0, q.Size() / 2 / 512 * 512, max(0, q.Size()-int64(len(buf)))} {
			n := min(int64(len(buf)), q.Size()-off)
			if got, err := q.ReadAt(buf[:n], off); err == nil {
				require.EqualValues(t, n, got)
			}
		}
	})
}
