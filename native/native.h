/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * What the files of the extension msgd._native share.
 *
 * Rule 1.  A function here does the plain case only, and leaves all else to its twin in Python, which is the one source
 *          of what the protocol is.  It declines before it has changed anything.
 * Rule 2.  No byte from outside is used before its length is checked.  Memory from outside is read with memcpy().
 * Rule 3.  Nothing here releases the GIL, and no Python code runs in the middle of a step.  So a step is one to other
 *          threads and to handlers of signals: what a system call has received is never lost to an exception.
 * Rule 4.  Instances are read by the offsets of their __slots__, which the class itself tells (slot_offset()).
 */
#ifndef MSGD_NATIVE_H
#define MSGD_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>

#ifdef Py_GIL_DISABLED
#error "rule 3 needs the GIL; interpreters without it run the Python twins"
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || UINTPTR_MAX != UINT64_MAX
#error "the formats are little-endian with 64 bits; other machines run the Python twins"
#endif

#define NONCLUSTER_VNN 0xffffffffu
#define UNIQUE_ID_UNKNOWN 0
#define FIRST_REQUEST_TASK 0x80000000u
#define EVERY_TASK 0xffffffffu
#define UNIQUE_ID_NOT_TO_VERIFY UINT64_MAX

/* A ServerID on the wire. */
struct address {
	uint64_t pid;
	uint32_t task_id;
	uint32_t vnn;
	uint64_t unique_id;
};

/* The header of a message on the wire.  The type that follows both has HEADER_SIZE - sizeof(struct route) bytes. */
struct route {
	struct address dst;
	struct address src;
};

#define HEADER_SIZE 52
_Static_assert(sizeof(struct route) + sizeof(uint32_t) == HEADER_SIZE, "two addresses and a type, unpadded");

/* Remembers the ServerIDs of the routes seen lately, and makes Messages. */
#define KNOWN_ROUTES 256

struct known_route {
	struct route route;
	PyObject *dst;
	PyObject *src;
};

typedef struct {
	PyObject_HEAD
	PyTypeObject *message_class;
	PyTypeObject *server_id_class;
	PyObject *no_fds;
	struct known_route known[KNOWN_ROUTES];
} Addresses;

extern PyTypeObject AddressesType;
extern PyTypeObject DelivererType;

/* A new Message with these addresses, without descriptors.  NULL with an exception if memory is short. */
PyObject *new_message(Addresses *self, const struct route *route, uint32_t type, const char *data, Py_ssize_t length);

/* The same with this bytes object as its data. */
PyObject *new_message_of(Addresses *self, const struct route *route, uint32_t type, PyObject *data);

/* The fields of a ServerID; -1 without an exception if it is none, or one of them does not fit. */
int read_address(PyTypeObject *server_id_class, PyObject *address, struct address *out);

/* The value of an int that fits uint32_t; -1 without an exception if it is none or does not fit. */
int read_u32(PyObject *number, uint32_t *out);

/* Where instances of a class keep one of its __slots__; -1 with TypeError if it is no such slot. */
Py_ssize_t slot_offset(PyObject *cls, const char *name);

static inline PyObject **slot(PyObject *instance, Py_ssize_t offset)
{
	return (PyObject **)((char *)instance + offset);
}

/* Put a value into a slot; the slot owns it from now on. */
static inline void set_slot(PyObject *instance, Py_ssize_t offset, PyObject *value)
{
	PyObject *before = *slot(instance, offset);

	*slot(instance, offset) = value;
	Py_XDECREF(before);
}

PyObject *receive_frames(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *split_records(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *receive_datagrams(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *move_all(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
