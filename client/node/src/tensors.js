// Typed arrays to tensors and back. A machine of big-endian order would have to turn the bytes round.

/** @typedef {import('../generated/aclserve/v1/Tensor.js').Tensor} TensorMessage */
/** @typedef {import('../generated/aclserve/v1/Tensor.js').Tensor__Output} TensorAnswer */

const ARRAYS = {
    BOOL: Uint8Array,
    UINT8: Uint8Array,
    UINT16: Uint16Array,
    UINT32: Uint32Array,
    UINT64: BigUint64Array,
    INT8: Int8Array,
    INT16: Int16Array,
    INT32: Int32Array,
    INT64: BigInt64Array,
    FLOAT16: Uint16Array,
    BFLOAT16: Uint16Array,
    FLOAT32: Float32Array,
    FLOAT64: Float64Array,
};

/** @typedef {keyof typeof ARRAYS} DataType */
/** @typedef {InstanceType<typeof ARRAYS[DataType]>} Values */

/**
 * The elements of a tensor in row-major order. Booleans are bytes of 0 or 1; the 16-bit floats are their bits.
 * @typedef {{ data: Values, shape: number[], dataType: DataType }} Tensor
 */

/**
 * An input: values with their shape, or a tensor as the contract has it (in a buffer, or made by the server).
 * @typedef {Tensor | TensorMessage} Input
 */

/**
 * A tensor of these values. Without a shape it has one axis; a type is only needed for booleans and 16-bit floats.
 * @param {Values} data
 * @param {number[]} [shape]
 * @param {DataType} [dataType]
 * @returns {Tensor}
 */
export function tensor(data, shape = [data.length], dataType = typeOf(data)) {
    if (!(ARRAYS[dataType] && data instanceof ARRAYS[dataType])) {
        throw new TypeError(`got ${data?.constructor?.name} for ${dataType}; expected ${ARRAYS[dataType]?.name}`);
    }
    const count = shape.reduce((product, length) => product * length, 1);
    if (count !== data.length) {
        throw new RangeError(`got ${data.length} values for the shape [${shape}]; expected ${count}`);
    }
    return { data, shape, dataType };
}

/** @param {Values} data */
function typeOf(data) {
    const name = /** @type {DataType} */ (data?.constructor?.name.replace(/^Big|Array$/g, '').toUpperCase());
    if (!Object.hasOwn(ARRAYS, name)) {
        throw new TypeError(`got ${data?.constructor?.name ?? data}; expected a typed array such as Float32Array`);
    }
    return name;
}

/**
 * @param {Record<string, Input>} inputs
 * @returns {TensorMessage[]}
 */
export function toMessages(inputs) {
    return Object.entries(inputs).map(([name, input]) => {
        if (!isTensor(input)) return { name, ...input };
        const { buffer, byteOffset, byteLength } = input.data;
        const data = Buffer.from(buffer, byteOffset, byteLength);
        return { name, dataType: `DATA_TYPE_${input.dataType}`, shape: input.shape, data };
    });
}

/**
 * @param {Input} input
 * @returns {input is Tensor}
 */
function isTensor(input) {
    return Object.hasOwn(ARRAYS, input?.dataType ?? '');
}

/**
 * The outputs by name. Those that the request directed into a buffer have no values here.
 * @param {TensorAnswer[]} messages
 * @returns {Record<string, Tensor>}
 */
export function fromMessages(messages) {
    return Object.fromEntries(
        messages.map((message) => {
            const dataType = /** @type {DataType} */ (`${message.dataType}`.replace('DATA_TYPE_', ''));
            if (!Object.hasOwn(ARRAYS, dataType)) throw new TypeError(`unknown type ${dataType}`);
            const bytes = new Uint8Array(message.data ?? []); // a copy: elements must be aligned
            return [message.name, { data: new ARRAYS[dataType](bytes.buffer), shape: message.shape, dataType }];
        }),
    );
}
