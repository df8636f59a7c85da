package hostdir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func TestDeletedButOpen(t *testing.T) {
	c := share(t, hostdir.Options{Xattr: true})
	out, st := c.create(root, "file", unix.O_RDWR, 0o640)
	require.Equal(t, fuse.OK, st)
	node, fh := out.NodeId, out.Fh
	require.Equal(t, fuse.OK, c.unlink(root, "file"))
	_, st = c.write(node, fh, 0, "text", 0)
	require.Equal(t, fuse.OK, st)
	at, st := c.getattr(node)
	require.Equal(t, fuse.OK, st)
	assert.Zero(t, at.Nlink)
	at, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_MODE | fuse.FATTR_SIZE, Mode: 0o600, Size: 2})
	require.Equal(t, fuse.OK, st)
	assert.EqualValues(t, unix.S_IFREG|0o600, at.Mode)
	second := c.opened(node, unix.O_RDONLY)
	c.release(node, fh)
	text, st := c.read(node, second, 0, 10)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, "te", text)
	c.release(node, second)
	_, st = c.getattr(node)
	require.Equal(t, fuse.OK, st)
	c.fs.Forget(node, 1)
	_, st = c.getattr(node)
	assert.Equal(t, estale, st)
	assert.Zero(t, c.fs.Stats().Open)

	// Of no name at all, until it gets one.
	var tmp fuse.CreateOut
	st = c.fs.Tmpfile(nil, &fuse.CreateIn{InHeader: c.header(root), Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o600}, &tmp)
	if st == enotsup {
		t.Skip("this file system has no nameless files")
	}
	require.Equal(t, fuse.OK, st)
	_, st = c.write(tmp.NodeId, tmp.Fh, 0, "tmp", 0)
	require.Equal(t, fuse.OK, st)
	linked, st := c.link(tmp.NodeId, root, "named")
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, tmp.NodeId, linked.NodeId)
	assert.Equal(t, "tmp", c.text("named"))
}

// TestNamesTakenAway: who has looked a name up opens what it was then, whatever
// becomes of the name in the meantime, until the guest forgets it.
func TestNamesTakenAway(t *testing.T) {
	for _, tc := range []struct {
		name string
		take func(*client) fuse.Status
	}{
		{"removed", func(c *client) fuse.Status { return c.unlink(root, "name") }},
		{"replaced", func(c *client) fuse.Status {
			c.put("new", "new")
			return c.rename(root, "new", root, "name", 0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := share(t, hostdir.Options{})
			c.put("name", "text")
			node := c.node("name")
			require.Equal(t, fuse.OK, tc.take(c))
			at, st := c.getattr(node)
			require.Equal(t, fuse.OK, st)
			assert.Zero(t, at.Nlink)
			fh := c.opened(node, unix.O_RDONLY)
			text, st := c.read(node, fh, 0, 10)
			require.Equal(t, fuse.OK, st)
			assert.Equal(t, "text", text)
			c.release(node, fh)
			assert.Equal(t, 1, c.fs.Stats().Open)
			c.fs.Forget(node, 1)
			assert.Zero(t, c.fs.Stats().Open)

			require.NoError(t, os.RemoveAll(filepath.Join(c.dir, "name")))
			require.NoError(t, os.Symlink("target", filepath.Join(c.dir, "name")))
			node = c.node("name")
			require.Equal(t, fuse.OK, tc.take(c))
			target, st := c.readlink(node)
			require.Equal(t, fuse.OK, st)
			assert.Equal(t, "target", target)
		})
	}

	t.Run("bounded", func(t *testing.T) {
		const files = 100
		c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxOpen: 1}})
		most := 0
		var nodes []uint64
		for i := range files {
			name := fmt.Sprint(i)
			c.put(name, name)
			nodes = append(nodes, c.node(name))
			require.Equal(t, fuse.OK, c.unlink(root, name))
			most = max(most, c.fs.Stats().Open)
		}
		assert.Less(t, most, files/2)
		last := len(nodes) - 1
		c.release(nodes[last], c.opened(nodes[last], unix.O_RDONLY))
		_, st := c.open(nodes[0], unix.O_RDONLY)
		assert.Equal(t, estale, st)
	})

	t.Run("not taken away after all", func(t *testing.T) {
		c := share(t, hostdir.Options{})
		c.put("name", "text")
		c.put("dir/file", "text")
		dir := c.node("dir")
		c.node("name")
		assert.Equal(t, fuse.Status(unix.ENOTDIR), c.rename(root, "dir", root, "name", 0))
		assert.Equal(t, fuse.Status(unix.EEXIST), c.rename(dir, "file", root, "name", unix.RENAME_NOREPLACE))
		assert.Equal(t, 1, c.fs.Stats().Open, "the directory")
	})

	t.Run("unknown to the guest", func(t *testing.T) {
		c := share(t, hostdir.Options{})
		c.put("name", "text")
		require.Equal(t, fuse.OK, c.unlink(root, "name"))
		assert.Zero(t, c.fs.Stats().Open)
	})
}
