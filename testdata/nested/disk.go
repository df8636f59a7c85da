package nested

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DiskDir is where the emulated host has its disk, if it has one.
const DiskDir = "/disk"

// Of the emulated host's disk.
const (
	diskDevice  = "/dev/vda"
	diskTimeout = time.Minute
)

// diskModules are what the emulated host needs for its disk.
var diskModules = []string{"virtio_pci", "virtio_blk", "ext4", "crc32c_generic"}

// makeDisk makes an ext4 image of a size as mke2fs takes it, on the disk and not
// in memory, and returns its path. It is the caller's.
func makeDisk(ctx context.Context, size string) (string, error) {
	f, err := os.CreateTemp("/var/tmp", "vole-nested-disk-*.img")
	if err != nil {
		return "", fmt.Errorf("nested: create the emulated host's disk: %w", err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	cmd, err := ProgramCommand(ctx, ComponentExt, "sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", f.Name(), size)
	if err == nil {
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("nested: make the emulated host's disk: %w: %s", err, out)
		}
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// mountDisk is init's part.
func mountDisk() error {
	if err := os.MkdirAll(DiskDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", DiskDir, err)
	}
	if err := unix.Mount(diskDevice, DiskDir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", diskDevice, err)
	}
	return nil
}
