package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
	list, err := m.Devices(nil)
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
	list, err = m.Devices(nil)
	require.ErrorIs(t, err, block.ErrInUse)
	require.ErrorIs(t, err, ErrSpec)
	assert.Empty(t, list)
	again, err := block.Open(block.OpenOptions{Path: path})
	require.NoError(t, err)
	require.NoError(t, again.(*block.File).Close())
}
