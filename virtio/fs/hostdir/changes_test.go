package hostdir_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// overlaid is a share for a guest with an overlay on it: rw is a directory that may
// be changed. take says how often the guest was told since the last call, once all is
// said.
func overlaid(t *testing.T) (c *client, take func() int32) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/rw", 0o755))
	require.NoError(t, os.Mkdir(dir+"/dir", 0o755))
	var told atomic.Int32
	c = share(t, hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{dir + "/rw"}, Changed: func() { told.Add(1) }})
	return c, func() int32 {
		// It is told twice, unless that begins anew in between.
		for last, n := int32(-1), 0; n < 10; n++ {
			time.Sleep(300 * time.Millisecond)
			now := told.Load()
			if now%2 == 0 && (last < 0 || now == last) {
				break
			}
			last = now
		}
		return told.Swap(0)
	}
}

// replace puts another file in the place of one.
func (c *client) replace(name, text string) {
	c.put(name+".new", text)
	require.NoError(c.t, os.Rename(c.dir+"/"+name+".new", c.dir+"/"+name))
}

func TestReplacedFilesKeepTheirNode(t *testing.T) {
	c, told := overlaid(t)
	for _, name := range []string{"dir/file", "rw/file", "dir/linked"} {
		c.put(name, "one")
	}
	require.NoError(t, os.Link(c.dir+"/dir/linked", c.dir+"/dir/link"))
	file, kept, linked := c.walk("dir/file"), c.node("rw/file"), c.node("dir/linked")
	require.Equal(t, linked, c.node("dir/link"))
	c.replace("dir/file", "second")
	again := c.walk("dir/file")
	assert.Equal(t, file.NodeId, again.NodeId)
	assert.Equal(t, file.Generation, again.Generation)
	assert.NotEqual(t, file.Ino, again.Ino)
	assert.EqualValues(t, 6, again.Size)
	assert.Equal(t, "second", c.text("dir/file"))

	// The file that was moved away is another now, under any name.
	require.NoError(t, os.Rename(c.dir+"/dir/file", c.dir+"/dir/moved"))
	c.put("dir/file", "third")
	assert.Equal(t, file.NodeId, c.node("dir/file"))
	assert.NotEqual(t, file.NodeId, c.node("dir/moved"))
	assert.Equal(t, "third", c.text("dir/file"))
	assert.Equal(t, "second", c.text("dir/moved"))

	// Where writing is allowed the guest has no overlay.
	c.replace("rw/file", "second")
	assert.NotEqual(t, kept, c.node("rw/file"))
	require.Equal(t, int32(0), told())

	// What has another name goes on under that.
	c.replace("dir/linked", "second")
	assert.NotEqual(t, linked, c.node("dir/linked"))
	assert.Equal(t, linked, c.node("dir/link"))
	assert.Equal(t, "one", c.text("dir/link"))
	assert.Equal(t, int32(2), told())
	require.Eventually(t, func() bool { c.node("dir/linked"); return told() > 0 }, 5*time.Second, 50*time.Millisecond)
	require.Eventually(t, func() bool { c.node("dir/linked"); return told() > 0 }, 5*time.Second, 50*time.Millisecond)
	time.Sleep(4500 * time.Millisecond)
	c.node("dir/linked")
	assert.Equal(t, int32(0), told(), "the guest knows the other name")
}

// The guest meets a file under its new name first.
func TestMovedFilesLeaveTheirName(t *testing.T) {
	c, told := overlaid(t)
	c.put("dir/file", "one")
	dir, node := c.node("dir"), c.node("dir/file")
	require.NoError(t, os.Rename(c.dir+"/dir/file", c.dir+"/dir/moved"))
	assert.Equal(t, node, c.node("dir/moved"))
	_, st := c.lookup(dir, "file")
	require.Equal(t, fuse.ENOENT, st)
	assert.Equal(t, int32(2), told())
	require.NoError(t, os.Rename(c.dir+"/dir/moved", c.dir+"/dir/file"))
	assert.Equal(t, node, c.node("dir/file"))
	assert.Equal(t, int32(0), told())
}

func TestOpenFilesStayWhatTheyAre(t *testing.T) {
	c, told := overlaid(t)
	c.put("dir/file", "one")
	node := c.node("dir/file")
	fh := c.opened(node, unix.O_RDONLY)
	c.replace("dir/file", "second")
	next := c.node("dir/file")
	assert.NotEqual(t, node, next)
	assert.Equal(t, int32(2), told(), "the guest knows the name by another node")
	c.node("dir/file")
	assert.Equal(t, int32(0), told(), "not for each look")
	require.Eventually(t, func() bool { c.node("dir/file"); return told() > 0 }, 5*time.Second, 50*time.Millisecond, "it still does")
	at, st := c.getattr(node)
	require.Equal(t, fuse.OK, st)
	assert.EqualValues(t, 3, at.Size)
	c.release(node, fh)
	c.fs.Forget(node, 1)
	time.Sleep(2500 * time.Millisecond)
	c.node("dir/file")
	assert.Equal(t, int32(0), told(), "the guest has forgotten it")
}

func TestOverlaysAreTold(t *testing.T) {
	c, told := overlaid(t)
	c.put("dir/gone", "one")
	c.put("dir/mode", "one")
	dir := c.node("dir")
	c.node("dir/gone")
	c.node("dir/mode")
	for range 3 {
		none, st := c.lookup(dir, "absent")
		require.Equal(t, fuse.ENOENT, st)
		require.Zero(t, none.EntryTimeout(), "the overlay keeps it anyway")
		none, st = c.lookup(c.node("rw"), "absent")
		require.Equal(t, fuse.ENOENT, st)
		require.Equal(t, time.Second, none.EntryTimeout())
	}
	require.Equal(t, int32(0), told())

	require.NoError(t, os.Chmod(c.dir+"/dir/mode", 0o755))
	c.node("dir/mode")
	assert.Equal(t, int32(2), told())
	c.node("dir/mode")
	assert.Equal(t, int32(0), told())

	require.NoError(t, os.Remove(c.dir+"/dir/gone"))
	_, st := c.lookup(dir, "gone")
	require.Equal(t, fuse.ENOENT, st)
	assert.Equal(t, int32(2), told())

	// Of a name that appears the guest is told though it does not ask.
	c.put("dir/unasked", "x")
	c.put("rw/absent", "x")
	time.Sleep(2500 * time.Millisecond)
	assert.Equal(t, int32(0), told())
	c.put("dir/absent", "x")
	require.Eventually(t, func() bool { return told() > 0 }, 5*time.Second, 20*time.Millisecond)
	told()
	time.Sleep(2500 * time.Millisecond)
	assert.Equal(t, int32(0), told())
}

// A directory in which names were looked up in vain is forgotten, in any order.
func TestDirectoriesThatLackAreForgotten(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {1, 0, 2}} {
		c, _ := overlaid(t)
		var nodes []uint64
		for i := range 3 {
			name := fmt.Sprintf("dir/%d", i)
			require.NoError(t, os.Mkdir(c.dir+"/"+name, 0o755))
			node := c.node(name)
			_, status := c.lookup(node, "none")
			require.Equal(t, fuse.ENOENT, status)
			nodes = append(nodes, node)
		}
		for _, i := range order {
			c.fs.Forget(nodes[i], 1)
		}
		_, status := c.lookup(c.node("dir/0"), "none")
		require.Equal(t, fuse.ENOENT, status)
	}
}

// A guest that looks up without an end is told of less, and kept no more of.
func TestNamesLookedUpInVainAreBounded(t *testing.T) {
	c, told := overlaid(t)
	dir := c.node("dir")
	for i := range 70_000 {
		if _, st := c.lookup(dir, fmt.Sprintf("none%d", i)); st != fuse.ENOENT {
			t.Fatal(st)
		}
	}
	c.put("dir/none69999", "x")
	require.Eventually(t, func() bool { return told() > 0 }, 5*time.Second, 20*time.Millisecond)
	c.fs.Reset()
	require.Equal(t, 1, c.fs.Stats().Inodes)
	_, st := c.lookup(root, "none")
	require.Equal(t, fuse.ENOENT, st)
	c.put("none", "x")
	require.Eventually(t, func() bool { return told() > 0 }, 5*time.Second, 20*time.Millisecond)
}
