/*
 * A kernel module named nvidia that drives nothing: it gives modinfo, modprobe, DKMS and
 * /sys/module/nvidia/version something real to work on where there is no card.
 * /proc/driver/nvidia/version has the open module's wording.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static struct proc_dir_entry *folder;

static int tell_version(struct seq_file *file, void *unused)
{
	seq_puts(file, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  " NV_VERSION_STRING
		       "  Release Build  (holdfast@lab)\nGCC version:  " CONFIG_CC_VERSION_TEXT "\n");
	return 0;
}

static const struct pci_device_id display_devices[] = {
	{ PCI_DEVICE(0x10de, PCI_ANY_ID), .class = PCI_BASE_CLASS_DISPLAY << 16, .class_mask = 0xff0000 },
	{ }
};

static int claim(struct pci_dev *device, const struct pci_device_id *id)
{
	return -ENODEV;
}

static struct pci_driver driver = {
	.name = "nvidia",
	.id_table = display_devices,
	.probe = claim,
};

static int __init load(void)
{
	int error = pci_register_driver(&driver);

	if (error)
		return error;
	folder = proc_mkdir("driver/nvidia", NULL);
	if (!folder || !proc_create_single("version", 0444, folder, tell_version)) {
		proc_remove(folder);
		pci_unregister_driver(&driver);
		return -ENOMEM;
	}
	return 0;
}

static void __exit unload(void)
{
	proc_remove(folder);
	pci_unregister_driver(&driver);
}

module_init(load);
module_exit(unload);
MODULE_DESCRIPTION("A stand-in for NVIDIA's driver, without a card");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_VERSION_STRING);
MODULE_DEVICE_TABLE(pci, display_devices);
