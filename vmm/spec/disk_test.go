package spec

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
)

func TestParseDisk(t *testing.T) {
	for in, want := range map[string]Disk{
		"a.img":                         {File: "a.img"},
		"a,,b.img":                      {File: "a,b.img"},
		"a.img,ro":                      {File: "a.img", ReadOnly: true},
		"a.img,ro=off,serial=x=y":       {File: "a.img", Serial: "x=y"},
		"a.img,cow":                     {File: "a.img", COW: "file"},
		"a.img,cow=memory,format=qcow2": {File: "a.img", COW: "memory", Format: "qcow2"},
		"a.img,cow=memory,cow-limit=2G": {File: "a.img", COW: "memory", COWLimit: "2G"},
		"a.img,cache=none,queues=3,iops=100,iops-burst=1K,bps=1M,bps-burst=2M": {
			File: "a.img", Cache: "none", Queues: "3", IOPS: "100", IOPSBurst: "1K", BPS: "1M", BPSBurst: "2M"},
	} {
		t.Run(in, func(t *testing.T) {
			got, err := ParseDisk(in)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

// TestDiskUsage: the form names every option.
func TestDiskUsage(t *testing.T) {
	for _, o := range diskOptions {
		assert.Regexp(t, `\[,`+o.name+`[\]\[=]`, DiskUsage)
	}
}

func TestParseDiskRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "names no file",
		",ro":               "names no file",
		"a.img,rw":          `"rw" is no option of a disk`,
		"a.img,":            `"" is no option of a disk`,
		"a.img,ro,ro":       "ro is given more than once",
		"a.img,ro=yes":      `"yes" is neither on nor off`,
		"a.img,serial":      "serial needs a value",
		"a.img,serial=":     "serial is empty",
		"a.img,format=qcow": "",
	} {
		t.Run(in, func(t *testing.T) {
			_, err := ParseDisk(in)
			if want == "" { // what a value means is looked at later
				assert.NoError(t, err)
				return
			}
			assert.ErrorContains(t, err, want)
		})
	}
}

func TestDiskValues(t *testing.T) {
	for name, tc := range map[string]struct {
		disk Disk
		want string
	}{
		"no file":           {Disk{}, "names no file"},
		"serial too long":   {Disk{File: "d", Serial: strings.Repeat("x", 21)}, "21 bytes"},
		"format":            {Disk{File: "d", Format: "vmdk"}, `"vmdk" is neither raw nor qcow2`},
		"cache":             {Disk{File: "d", Cache: "fast"}, "fast"},
		"cow":               {Disk{File: "d", COW: "tape"}, `"tape" is neither file nor memory`},
		"no queues":         {Disk{File: "d", Queues: "0"}, "between 1 and 64"},
		"too many queues":   {Disk{File: "d", Queues: "65"}, "between 1 and 64"},
		"no rate":           {Disk{File: "d", IOPS: "0"}, "is no rate"},
		"rubbish rate":      {Disk{File: "d", BPS: "fast"}, "is no rate"},
		"cow-limit 0":       {Disk{File: "d", COW: "memory", COWLimit: "0"}, `cow-limit: "0"`},
		"cow-limit much":    {Disk{File: "d", COW: "memory", COWLimit: "much"}, `cow-limit: "much"`},
		"cow-limit -1":      {Disk{File: "d", COW: "memory", COWLimit: "-1"}, `cow-limit: "-1"`},
		"cow-limit 8E":      {Disk{File: "d", COW: "memory", COWLimit: "8E"}, `cow-limit: "8E"`},
		"cow-limit, a file": {Disk{File: "d", COW: "file", COWLimit: "1M"}, "cow-limit: it bounds what cow=memory keeps"},
		"cow-limit, no cow": {Disk{File: "d", COWLimit: "1M"}, "cow-limit: "},
		"a burst by itself": {Disk{File: "d", BPSBurst: "1M"}, "needs a rate"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Machine{Disks: []Disk{tc.disk}}.Config()
			require.ErrorIs(t, err, ErrSpec)
			var field *FieldError
			require.ErrorAs(t, err, &field)
			assert.Equal(t, "disk", field.Field)
			assert.ErrorContains(t, err, tc.want)
		})
	}
	_, err := Machine{Disks: slices.Repeat([]Disk{{File: "d"}}, 32)}.Config()
	assert.ErrorContains(t, err, "32 devices are too many: pci has room for 31")
	_, err = Machine{Disks: slices.Repeat([]Disk{{File: "d"}}, 18), RNG: true, Transport: "mmio"}.Config()
	assert.ErrorContains(t, err, "19 devices are too many: mmio has room for 18")
	_, err = Machine{Transport: "usb"}.Config()
	assert.ErrorContains(t, err, `"usb" is not one of pci, mmio`)
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	m := Machine{CPUs: "3", RNG: true, Disks: []Disk{{File: path, ReadOnly: true}, {File: path, ReadOnly: true, Queues: "1"}}}
	list, err := m.Devices(ConsoleStreams{}, nil)
	require.NoError(t, err)
	require.Len(t, list, 3)
	assert.Len(t, list[0].QueueSizes(), 3, "a queue for each vCPU")
	assert.Len(t, list[1].QueueSizes(), 1)
	assert.Equal(t, virtio.TypeEntropy, list[2].Type())
	for _, d := range list[:2] {
		require.NoError(t, d.(*block.Device).Close())
	}

	// The same image twice for writing is refused, and what was opened before it is closed.
	m.Disks = []Disk{{File: path}, {File: path}}
	list, err = m.Devices(ConsoleStreams{}, nil)
	require.ErrorIs(t, err, block.ErrInUse)
	require.ErrorIs(t, err, ErrSpec)
	assert.Empty(t, list)
	again, err := block.Open(block.OpenOptions{Path: path})
	require.NoError(t, err)
	require.NoError(t, again.(*block.File).Close())
}

func TestCOWLimit(t *testing.T) {
	var host unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&host))
	half := int64(host.Totalram) * int64(host.Unit) / 2
	mem := Disk{File: "d", COW: "memory"}
	limited := Disk{File: "d", COW: "memory", COWLimit: "64K"}
	for name, tc := range map[string]struct {
		disks []Disk
		want  []int64
	}{
		"one":          {[]Disk{mem}, []int64{half}},
		"two share":    {[]Disk{mem, mem}, []int64{half / 2, half / 2}},
		"its own":      {[]Disk{limited, mem}, []int64{64 << 10, half}},
		"not of these": {[]Disk{{File: "d"}, {File: "d", COW: "file"}, mem}, []int64{0, 0, half}},
	} {
		t.Run(name, func(t *testing.T) {
			m := Machine{Disks: tc.disks}
			for i, d := range m.Disks {
				open, _, err := d.options(1)
				require.NoError(t, err)
				require.NoError(t, m.limitCOW(&open))
				assert.Equal(t, tc.want[i], open.COWLimit)
			}
		})
	}

	t.Run("is kept", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "d.img")
		require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
		limited.File = path
		open, _, err := limited.options(1)
		require.NoError(t, err)
		img, err := block.Open(open)
		require.NoError(t, err)
		defer img.(io.Closer).Close()
		_, err = img.(io.WriterAt).WriteAt(make([]byte, 64<<10), 0)
		require.NoError(t, err)
		_, err = img.(io.WriterAt).WriteAt(make([]byte, 4096), 64<<10)
		assert.ErrorIs(t, err, unix.ENOSPC)
	})
}
