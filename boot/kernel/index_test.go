package kernel

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func testRecord(i int) record {
	r := record{
		key:         fileKey{dev: 1 << 63, inode: uint64(i), size: 14149568, mtime: 1782986400e9, ctime: -1},
		vmlinuxSize: int64(i) << 20, vmlinuxMtime: 1795349580e9 + int64(i),
	}
	r.digest[0], r.digest[31] = byte(i), 0xff
	return r
}

func TestIndexRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, maxRecords} {
		var x index
		for i := range n {
			x.add(testRecord(i))
		}
		got, err := parseIndex(x.encode())
		require.NoError(t, err)
		assert.Equal(t, x, got)
	}
}

func TestIndexAdd(t *testing.T) {
	var x index
	for i := range maxRecords + 3 {
		x.add(testRecord(i))
	}
	require.Len(t, x.records, maxRecords)
	assert.Equal(t, testRecord(3), x.records[0], "the oldest went")

	x = index{}
	one, two, three := testRecord(1), testRecord(2), testRecord(3)
	x.add(one)
	x.add(two)
	again := one
	again.key.size++
	x.add(again)
	assert.Equal(t, []record{two, again}, x.records, "the same file, changed")
	three.digest, three.vmlinuxMtime = two.digest, two.vmlinuxMtime+1
	x.add(three)
	assert.Equal(t, []record{again, three}, x.records, "the same digest, extracted again")
}

func TestIndexRefuses(t *testing.T) {
	var x index
	x.add(testRecord(1))
	good := x.encode()
	reseal := func(body string) []byte { return appendTrailer([]byte(body)) }
	for _, c := range []struct {
		name string
		b    []byte
		text string
	}{
		{"empty", nil, "format"},
		{"another version", bytes.Replace(good, []byte("kernels 1"), []byte("kernels 2"), 1), "format"},
		{"cut", good[:len(good)-1], "checksum"},
		{"flipped", bytes.Replace(good, []byte("14149568"), []byte("14149569"), 1), "checksum"},
		{"huge", make([]byte, maxIndex+1), "bytes"},
		{"few fields", reseal(indexFormat + "1 2 3\n"), "3 fields"},
		{"a word", reseal(indexFormat + "1 2 3 four 5 " + testRecord(1).digest.String() + " 7 8\n"), "four"},
		{"a negative inode", reseal(indexFormat + "1 -2 3 4 5 " + testRecord(1).digest.String() + " 7 8\n"), "-2"},
		{"a short digest", reseal(indexFormat + "1 2 3 4 5 abcd 7 8\n"), "digest of 4"},
		{"no hex", reseal(indexFormat + "1 2 3 4 5 " + string(bytes.Repeat([]byte("x"), 64)) + " 7 8\n"), "invalid byte"},
		{"too many", reseal(indexFormat + string(bytes.Repeat(good[len(indexFormat):len(good)-13], maxRecords+1))), "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseIndex(c.b)
			require.ErrorIs(t, err, errIndex)
			assert.ErrorContains(t, err, c.text)
		})
	}
}

func FuzzIndex(f *testing.F) {
	var x index
	f.Add(x.encode())
	x.add(testRecord(1))
	x.add(testRecord(2))
	f.Add(x.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		// As it comes, and with a checksum that lets it through.
		for _, b := range [][]byte{b, appendTrailer(bytes.Clone(b)), appendTrailer(append([]byte(indexFormat), b...))} {
			x, err := parseIndex(b)
			if err != nil {
				require.ErrorIs(t, err, errIndex)
				continue
			}
			require.LessOrEqual(t, len(x.records), maxRecords)
			again, err := parseIndex(x.encode())
			require.NoError(t, err)
			require.Equal(t, x, again)
		}
	})
}
