package fs

import (
	"encoding/binary"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
)

// syncFSIn is struct fuse_syncfs_in, which the library does not have.
type syncFSIn struct {
	fuse.InHeader
	Padding uint64
}

// TestSizes compares the sizes of fixed parts with those of the library, which
// reads and writes that much.
func TestSizes(t *testing.T) {
	for op, tc := range map[uint32][2]any{
		1: {nil, fuse.EntryOut{}}, opForget: {fuse.ForgetIn{}, nil}, 3: {fuse.GetAttrIn{}, fuse.AttrOut{}}, 4: {fuse.SetAttrIn{}, fuse.AttrOut{}},
		6: {nil, fuse.EntryOut{}}, 8: {fuse.MknodIn{}, fuse.EntryOut{}}, 9: {fuse.MkdirIn{}, fuse.EntryOut{}},
		13: {fuse.LinkIn{}, fuse.EntryOut{}}, 14: {fuse.OpenIn{}, fuse.OpenOut{}}, opRead: {fuse.ReadIn{}, nil}, opWrite: {fuse.WriteIn{}, fuse.WriteOut{}},
		17: {nil, fuse.StatfsOut{}}, 18: {fuse.ReleaseIn{}, nil}, 20: {fuse.FsyncIn{}, nil}, opGetXattr: {fuse.GetXAttrIn{}, fuse.GetXAttrOut{}},
		opListXattr: {fuse.GetXAttrIn{}, fuse.GetXAttrOut{}}, 25: {fuse.FlushIn{}, nil}, opInit: {nil, fuse.InitOut{}}, 27: {fuse.OpenIn{}, fuse.OpenOut{}},
		opReaddir: {fuse.ReadIn{}, nil}, 29: {fuse.ReleaseIn{}, nil}, 30: {fuse.FsyncIn{}, nil}, 31: {fuse.LkIn{}, fuse.LkOut{}}, opSetLk: {fuse.LkIn{}, nil},
		opSetLkw: {fuse.LkIn{}, nil}, 34: {fuse.AccessIn{}, nil}, 35: {fuse.CreateIn{}, fuse.CreateOut{}}, opInterrupt: {fuse.InterruptIn{}, nil},
		opIoctl: {fuse.IoctlIn{}, fuse.IoctlOut{}}, 43: {fuse.FallocateIn{}, nil}, opReaddirPlus: {fuse.ReadIn{}, nil}, 45: {fuse.RenameIn{}, nil},
		46: {fuse.LseekIn{}, fuse.LseekOut{}}, 47: {fuse.CopyFileRangeIn{}, fuse.WriteOut{}}, opSyncFS: {syncFSIn{}, nil}, 51: {fuse.CreateIn{}, fuse.CreateOut{}}, 52: {fuse.StatxIn{}, fuse.StatxOut{}},
	} {
		if tc[0] != nil {
			assert.Equal(t, binary.Size(tc[0]), kinds[op].in, "%s in", kinds[op].name)
		}
		out := 0
		if tc[1] != nil {
			out = binary.Size(tc[1])
		}
		assert.Equal(t, out, kinds[op].out, "%s out", kinds[op].name)
	}
	assert.Equal(t, binary.Size(fuse.InHeader{}), inHeaderSize)
	assert.Equal(t, binary.Size(fuse.OutHeader{}), outHeaderSize)
	for op := range kinds {
		assert.LessOrEqual(t, kinds[op].in, 128, "the library copies no more at first")
	}
}
